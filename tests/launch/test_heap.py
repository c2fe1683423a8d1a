"""Freed memory stays with a process or goes, as it was told; untold, glibc would do the opposite in either case."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 1 << 20
TAKE_AND_FREE = """
import resource, sys
import numpy as np
from launch import heap
getattr(heap, sys.argv[1])()
def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def take():
    return [np.ones(1 << 20) for _ in range(8)]
take()  # glibc has then seen arrays of this size freed
arrays = take()
full = resident_bytes()
del arrays[:int(sys.argv[2])]  # from the first one on
print(full - resident_bytes())
"""


def freed_bytes(told: str, arrays: int) -> int:
    """Return by how much a process shrinks that frees so many of its eight arrays of 8 MiB."""
    argv = [sys.executable, "-c", TAKE_AND_FREE, told, str(arrays)]
    return int(subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_freed_memory_is_kept():
    assert freed_bytes("keep", 8) < 8 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_freed_memory_is_given_back_also_from_below_an_array_that_stays():
    assert freed_bytes("give_back", 7) > 48 * MIB
