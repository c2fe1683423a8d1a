"""A kill or a full disk in the middle of a save: what was committed before stays whole."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from launch import checkpoint
from launch.errors import LaunchError
from tests.conftest import ROOT
from tests.launch.saves_for_ever import state


def killed_writer(directory: Path, after_s: float) -> int:
    """Let a process save until `after_s` after its first commit, kill it, and return the last step that it told of."""
    argv = [sys.executable, "-m", "tests.launch.saves_for_ever", str(directory)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    first = process.stdout.readline()
    time.sleep(after_s)
    process.kill()
    rest = process.stdout.read()
    process.wait()
    process.stdout.close()
    return int((first + rest).rpartition("\n")[0].split()[-1])


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.full)])
def test_a_kill_at_any_moment_leaves_the_last_committed_state_whole(tmp_path, kills):
    caught_in_the_middle = 0
    for after_s in np.random.default_rng(kills).uniform(0.0, 0.3, kills):
        told = killed_writer(tmp_path, after_s)
        caught_in_the_middle += any(tmp_path.glob(".step-*"))
        held = checkpoint.load(tmp_path)
        assert held.skipped == []
        assert told <= held.step <= told + 1
        assert held.meta == {"step": held.step}
        for name, array in state(held.step).items():
            np.testing.assert_array_equal(held.arrays[name], array)
    assert caught_in_the_middle, "no kill met a save: this tested nothing"


@contextmanager
def largest_file(n_bytes: int):
    """Let no file of this process grow beyond `n_bytes`: writing fails at that byte, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("limit_bytes", "file"), [(0, "data"), (1, "data"), (70_000, "data"), (90_000, "index")]
)
def test_a_full_disk_leaves_the_checkpoints_before_as_they_were(tmp_path, limit_bytes, file):
    small = {"x": np.arange(10_000, dtype=np.float64)}  # 80,000 bytes
    for step in (1, 2):
        checkpoint.save(tmp_path, step, small, {})
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with largest_file(limit_bytes), pytest.raises(LaunchError) as caught:
        checkpoint.save(tmp_path, 3, small, {"long": "x" * 100_000} if file == "index" else {})
    assert str(caught.value).startswith(f"{tmp_path}/step-00000003: File too large; ")
    assert str(caught.value).endswith(" bytes are free there")
    assert caught.value.exit_code == 1, "5 would call it damaged, and nobody would try again"
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    assert len(list(tmp_path.iterdir())) == 2
    checkpoint.save(tmp_path, 3, small, {})
    assert checkpoint.load(tmp_path).step == 3


def test_a_full_disk_leaves_the_step_that_is_saved_again(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": np.arange(4)}, {})
    with largest_file(10), pytest.raises(LaunchError):
        checkpoint.save(tmp_path, 1, {"x": np.arange(400)}, {})
    assert checkpoint.load(tmp_path).arrays["x"].tolist() == [0, 1, 2, 3]
