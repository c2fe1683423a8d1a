"""A signal to any one rank stops all of them after the same step."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
from mpi4py import MPI

from launch.attempt import Command, run_attempt
from launch.rundir import RunDir
from launch.signals import StopSignals

RANKS = 3


@pytest.fixture
def run(tmp_path) -> RunDir:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "behaviour").write_text("")
    return RunDir(tmp_path / "run")


def attempt(run: RunDir, meanwhile, stop: threading.Event | None = None):
    ended, stop = [], stop or threading.Event()
    command = Command("tests.launch.stepping", RANKS, oversubscribed=True)
    thread = threading.Thread(target=lambda: ended.append(run_attempt(run, command, stop)))
    thread.start()
    try:
        meanwhile(pids(run))
        thread.join(60)
        return ended[0]
    finally:
        stop.set()  # nothing of a failed test goes on


def pids(run: RunDir) -> list[int]:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        files = [run.path / f"pid{rank}" for rank in range(RANKS)]
        if all(file.exists() and file.read_text() for file in files):
            return [int(file.read_text()) for file in files]
        time.sleep(0.02)
    pytest.fail("the ranks did not start")


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(run, number, rank):
    record = attempt(run, lambda ranks: os.kill(ranks[rank], number))
    told = [json.loads((run.path / f"stopped{rank}").read_text()) for rank in range(RANKS)]
    assert told == [[number.name, record.step]] * RANKS
    assert (record.code, record.cause) == (75, f"{number.name} after step {record.step}")
    assert 3 < record.step < 200
    assert run.state() == "requeue"


def test_different_signals_to_several_ranks_at_several_times_stop_them_once(run):
    def scatter(ranks):
        os.kill(ranks[2], signal.SIGTERM)
        os.kill(ranks[1], signal.SIGUSR1)
        os.kill(ranks[1], signal.SIGUSR1)

    record = attempt(run, scatter)
    told = [json.loads((run.path / f"stopped{rank}").read_text())[1] for rank in range(RANKS)]
    assert (record.code, told) == (75, [record.step] * RANKS)


def test_a_driver_that_is_stopped_lets_its_ranks_commit(run):
    stop = threading.Event()
    record = attempt(run, lambda _: stop.set(), stop)
    assert (record.code, record.cause) == (75, f"SIGTERM after step {record.step}")


@pytest.mark.parametrize("stops", [True, False])
def test_only_who_has_stopped_is_deaf_to_a_second_signal(stops):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopSignals(MPI.COMM_SELF, [signal.SIGUSR1]) as stop:
            assert stop.now() is None
            if stops:
                os.kill(os.getpid(), signal.SIGUSR1)
            assert (stop.now() is signal.SIGUSR1) == stops
        assert (signal.getsignal(signal.SIGUSR1) is not signal.SIG_IGN) == stops
    finally:
        signal.signal(signal.SIGUSR1, before)
