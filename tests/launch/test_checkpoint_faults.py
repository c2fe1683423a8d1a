"""A kill or a full disk in the middle of a save: what was committed before stays whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch.errors import LaunchError
from tests.conftest import MPIEXEC, ROOT
from tests.launch.alone import largest_file, load, save
from tests.launch.saves_for_ever import state

ALONE = (sys.executable,)
TWO_RANKS = (str(MPIEXEC), "-n", "2", sys.executable, "-m", "mpi4py")


def killed_writer(python: tuple[str, ...], directory: Path, after_s: float, *options: str) -> int:
    """Let a job save until `after_s` after its first commit, kill it, and return the last step that it told of."""
    argv = [*python, "-m", "tests.launch.saves_for_ever", str(directory), *options]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    first = process.stdout.readline()
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    rest = process.stdout.read()
    process.wait()
    process.stdout.close()
    return int((first + rest).rpartition("\n")[0].split()[-1])


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("python", "options"),
    [(ALONE, ()), (TWO_RANKS, ()), (TWO_RANKS, ("--in-the-background",)), (TWO_RANKS, ("--beside-work",))],
    ids=["alone", "on_2_ranks", "in_the_background", "beside_work"],
)
def test_a_kill_at_any_moment_leaves_the_last_committed_state_whole(tmp_path, python, options, kills):
    caught_in_the_middle = 0
    for after_s in np.random.default_rng(kills).uniform(0.0, 0.3, kills):
        told = killed_writer(python, tmp_path, after_s, *options)
        caught_in_the_middle += any(tmp_path.glob(".step-*"))
        held = load(tmp_path)
        assert held.skipped == []
        assert told <= held.step <= told + 1
        assert held.meta == {"step": held.step}
        for name, array in state(held.step).items():
            np.testing.assert_array_equal(held.arrays[name], array)
    assert caught_in_the_middle, "no kill met a save: this tested nothing"


def test_a_kill_between_the_renames_of_a_step_saved_again_does_not_lose_it(tmp_path):
    save(tmp_path, 1, {"x": np.arange(4)}, {}).rename(tmp_path / ".step-00000001.replaced")
    (tmp_path / ".step-00000001.99").mkdir()
    assert load(tmp_path).arrays["x"].tolist() == [0, 1, 2, 3]
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.replaced")
    save(tmp_path, 2, {"x": np.arange(2)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    ("limit_bytes", "file"), [(0, "data"), (1, "data"), (70_000, "data"), (90_000, "index")]
)
def test_a_full_disk_leaves_the_checkpoints_before_as_they_were(tmp_path, limit_bytes, file):
    small = {"x": np.arange(10_000, dtype=np.float64)}  # 80,000 bytes
    for step in (1, 2):
        save(tmp_path, step, small, {})
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with largest_file(limit_bytes), pytest.raises(LaunchError) as caught:
        save(tmp_path, 3, small, {"long": "x" * 100_000} if file == "index" else {})
    assert str(caught.value).startswith(f"{tmp_path}/step-00000003: File too large; ")
    assert str(caught.value).endswith(" bytes are free there")
    assert caught.value.exit_code == 1, "5 would call it damaged, and nobody would try again"
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    assert len(list(tmp_path.iterdir())) == 2
    save(tmp_path, 3, small, {})
    assert load(tmp_path).step == 3


def test_a_full_disk_leaves_the_step_that_is_saved_again(tmp_path):
    save(tmp_path, 1, {"x": np.arange(4)}, {})
    with largest_file(10), pytest.raises(LaunchError):
        save(tmp_path, 1, {"x": np.arange(400)}, {})
    assert load(tmp_path).arrays["x"].tolist() == [0, 1, 2, 3]
