"""Checkpoints of one process that holds every array uncut."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from launch import checkpoint


def save(
    directory: Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], keep: int = 2
) -> Path:
    pieces = [checkpoint.whole(name, array) for name, array in arrays.items()]
    return checkpoint.save(MPI.COMM_SELF, directory, step, pieces, meta, keep)


def load(directory: Path) -> checkpoint.Checkpoint | None:
    return checkpoint.load(MPI.COMM_SELF, directory)


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond `n_bytes`: writing fails at that byte, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
