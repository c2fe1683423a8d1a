"""A lock is held for as long as its process lives, and tells others whose it is."""

from __future__ import annotations

import fcntl
import stat
import subprocess
import sys

import pytest

from launch.errors import LaunchError
from launch.rundir import RunBusyError, RunDir, is_locked, locked

HOLDER = """
import os, sys
from pathlib import Path
from launch.rundir import locked
with locked(Path(sys.argv[1]), "this run", {"pid": os.getpid()}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock `tmp_path/lock` until its stdin is closed or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_lock_is_a_running_run_and_its_death_an_interrupted_one(tmp_path, holder):
    run = RunDir(tmp_path)
    run.attempt(1, "out").touch()
    assert run.state() == "running"
    holder.kill()
    holder.wait()
    assert run.state() == "interrupted"


def test_mpiexec_that_still_holds_its_output_is_a_running_run(tmp_path):
    run = RunDir(tmp_path)
    with run.attempt(1, "out").open("w") as output:
        fcntl.flock(output, fcntl.LOCK_EX)
        assert run.state() == "running"
    assert run.state() == "interrupted"


def test_a_second_process_is_refused_and_told_who_was_first(tmp_path, holder):
    with (
        pytest.raises(RunBusyError) as caught,
        locked(tmp_path / "lock", "this run", {"pid": 1}),
    ):
        pytest.fail("two processes held one lock")
    assert str(caught.value) == (
        f'{tmp_path}: this run is already being worked on by {{"pid": {holder.pid}}}'
    )
    assert caught.value.exit_code == 3


def test_a_lock_of_a_dead_process_is_free_and_its_longer_note_is_gone(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock = tmp_path / "lock"
    assert lock.read_text(), "the dead one's note stands there still"
    with locked(lock, "this run", {}):
        assert lock.read_text() == "{}"
        assert is_locked(lock)
    assert lock.read_text() == ""
    assert not is_locked(lock)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_a_lock_that_cannot_be_made_is_one_sentence(tmp_path):
    with (
        pytest.raises(LaunchError, match=f"^{tmp_path}/gone/lock: No such file or directory$"),
        locked(tmp_path / "gone" / "lock", "this run", {}),
    ):
        pytest.fail("no lock was made")
