"""One MPI job from start to end: however it ends, its run directory says so in words."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from launch import lifeline
from launch.attempt import Command, find_launcher, run_attempt
from launch.errors import LaunchError
from launch.lifeline import Lifelines
from launch.rundir import RunDir

GO_ON = threading.Event()


@pytest.fixture
def run(tmp_path) -> RunDir:
    return a_run(tmp_path / "run")


def a_run(path: Path) -> RunDir:
    path.mkdir(mode=0o700)
    return RunDir(path)


def attempt(run: RunDir, behaviour: str, ranks: int = 2, stop: threading.Event = GO_ON):
    (run.path / "behaviour").write_text(behaviour)
    return run_attempt(run, Command("tests.launch.ranks", ranks, oversubscribed=True), stop)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_finishes_is_done_and_private(run):
    assert run.state() == "pending"
    record = attempt(run, "finish")
    assert (record.code, record.cause, record.step) == (0, "finished", 7)
    assert run.state() == "done"
    assert sorted(run.attempt(1, "out").read_text().split("\n"))[1:] == [
        "rank 0 of 2, local 0",
        "rank 1 of 2, local 1",
    ]
    for path in run.path.rglob("attempt-*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_provenance_names_every_attempt_and_no_secret(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret")
    attempt(run, "finish")
    attempt(run, "finish")
    held = json.loads(run.provenance.read_text())
    assert list(held) == ["1", "2"]
    assert [rank for ranks in held["2"]["hosts"].values() for rank in ranks] == [0, 1]
    assert len(held["2"]["pids"]) == 2
    assert "MPICH" in held["2"]["mpi_library"]
    assert all("planted-secret" not in p.read_text() for p in run.path.iterdir() if p.is_file())


def test_a_rank_that_raises_gives_the_cause_and_its_traceback(run):
    record = attempt(run, "raise", ranks=3)
    assert (record.code, record.cause, record.rank, record.step) == (1, "ValueError: boom", 2, 7)
    assert "Traceback" in run.attempt(1, "err").read_text()
    assert run.state() == "failed"


def test_a_mistake_of_the_user_ends_in_one_sentence_without_a_traceback(run):
    record = attempt(run, "mistake")
    assert (record.code, record.cause) == (2, "text.txt: the file is empty")
    error = run.attempt(1, "err").read_text()
    assert "rank 1: text.txt: the file is empty" in error
    assert "Traceback" not in error


def test_a_mistake_is_told_even_where_its_record_cannot_be_written(run, mpiexec):
    (run.path / "behaviour").write_text("vanish")
    ended = mpiexec(2, "-m", "tests.launch.ranks", str(run.path))
    assert ended.status == 2
    assert "rank 1: text.txt: the file is empty" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("times", [2, pytest.param(30, marks=pytest.mark.full)])
def test_a_killed_rank_is_named_by_the_parent_and_never_another(tmp_path, times):
    """However busy the machine: here two loops beside it, and the rank has many threads to end; MPICH names any."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for time_ in range(times):
            record = attempt(a_run(tmp_path / str(time_)), "killed", ranks=3)
            assert (record.code, record.rank) == (1, 2)
            assert record.cause.startswith("rank 2 on ")
            assert record.cause.endswith("was ended by signal 9 (SIGKILL)")
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_nobody_is_named_when_a_rank_had_no_line_or_one_was_cut_before_all_were_there():
    for ranks, said_late in ((3, False), (2, True)):
        with closing(Lifelines(ranks)) as lines:
            first, second = connected(lines, 0), connected(lines, 1)
            if not said_late:
                lines.watch(1), lines.watch(1)
            second.close(), first.close()
            for _ in range(3):
                lines.watch(0.1)
            assert lines.first_gone == -1


def test_the_first_line_that_is_cut_counts_however_late_the_parent_looks():
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        with closing(Lifelines(3)) as lines:
            held = [connected(lines, rank) for rank in range(3)]
            for _ in held:
                lines.watch(1)
            for rank in order:
                held[rank].close()
            lines.watch(1)
            assert lines.first_gone == order[0]


def connected(lines: Lifelines, rank: int) -> socket.socket:
    before = list(lifeline._held)
    lifeline.hold(rank, {lifeline.VARIABLE: lines.path})
    [line] = [each for each in lifeline._held if each not in before]
    return line


def test_a_rank_that_leaves_silently_is_a_failure(run):
    record = attempt(run, "exit")
    assert record.code == 1
    assert "status 3" in record.cause


def test_a_planned_requeue_ends_every_rank_with_75(run):
    record = attempt(run, "requeue")
    assert (record.code, record.cause) == (75, "the walltime is near")
    assert run.state() == "requeue"
    assert run.attempt(1, "err").read_text() == ""


def test_another_world_than_asked_for_is_refused(run, mpiexec):
    (run.path / "behaviour").write_text("finish")
    ended = mpiexec(1, "-m", "tests.launch.ranks", str(run.path), env={"ISOFLOP_WORLD_SIZE": "2"})
    assert ended.status == 3
    assert "ISOFLOP_WORLD_SIZE=2, but MPI started 1 ranks" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_stop_ends_the_ranks_and_the_run_counts_as_interrupted(run):
    stop, ended = threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(attempt(run, "wait", stop=stop)))
    thread.start()
    pids = _wait_for_ranks(run)
    assert run.state() == "running"
    assert stat.S_IMODE((run.path / "rank0").stat().st_mode) == 0o600, "whatever a rank makes is its user's"
    stop.set()
    thread.join(30)
    assert ended[0].code == 130
    assert run.state() == "interrupted"
    assert not any(alive(pid) for pid in pids)


@pytest.fixture
def orphan(run):
    """Ranks whose driver is gone: nobody but they themselves can record their end."""
    (run.path / "behaviour").write_text("wait")
    run.attempt(1, "out").touch()
    argv = Command("tests.launch.ranks", 2).argv(run, 1)
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True)
    yield _wait_for_ranks(run)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_start_of_a_live_run_is_refused(run, orphan, mpiexec):
    second = mpiexec(1, "-m", "tests.launch.ranks", str(run.path))
    assert second.status == 3
    assert f'"pid": {orphan[0]}' in second.stderr
    assert run.state() == "running"


def test_an_orphan_is_awaited_and_its_own_record_taken(run, orphan):
    threading.Timer(1.0, (run.path / "go").touch).start()
    record = attempt(run, "finish")
    assert (record.code, record.cause) == (0, "finished")
    assert run.attempts() == [1], "nothing was started beside the orphan"


def test_an_orphan_that_dies_without_a_word_is_replaced(run, orphan):
    threading.Timer(1.0, os.kill, (orphan[1], signal.SIGKILL)).start()
    record = attempt(run, "finish")
    assert (record.code, run.attempts()) == (0, [1, 2])
    assert run.exit_record(1) is None


def test_what_is_left_of_an_attempt_that_has_told_its_end_does_not_end_the_next(run):
    assert attempt(run, "mistake").code == 2
    with run.attempt(1, "out").open() as held:  # as mpiexec's own processes do, for an instant
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(1.0, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        record = attempt(run, "finish")
    assert (record.code, run.attempts()) == (0, [1, 2])


def test_a_missing_launcher_is_named():
    with pytest.raises(LaunchError, match="launcher 'no-such-mpiexec' not found: `pip install mpich`"):
        find_launcher("no-such-mpiexec")


def _wait_for_ranks(run: RunDir, ranks: int = 2) -> list[int]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        texts = [run.path / f"rank{r}" for r in range(ranks)]
        if all(path.exists() and path.read_text() for path in texts):
            return [int(path.read_text()) for path in texts]
        time.sleep(0.05)
    pytest.fail("the ranks did not start")
