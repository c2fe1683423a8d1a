"""When nothing moves the late rank is named, with what it does and after which step; the job ends with 1."""

from __future__ import annotations

import re
import threading

import pytest

from launch.attempt import Command, run_attempt
from launch.rundir import RunDir
from launch.watchdog import Report, verdict
from tests.launch.stepping import BAD_STEP

RANKS = 3


@pytest.fixture
def run(tmp_path) -> RunDir:
    (tmp_path / "run").mkdir(mode=0o700)
    return RunDir(tmp_path / "run")


def attempt(run: RunDir, behaviour: str, monkeypatch):
    (run.path / "behaviour").write_text(behaviour)
    monkeypatch.setenv("WATCHDOG_S", "2")
    return run_attempt(run, Command("tests.launch.stepping", RANKS, oversubscribed=True), threading.Event())


@pytest.mark.parametrize("late", [0, 2])
def test_a_rank_that_hangs_is_named_with_its_line_and_step(run, monkeypatch, late):
    record = attempt(run, f"hang {late}", monkeypatch)
    others = [rank for rank in range(RANKS) if rank != late]
    assert (record.code, record.rank, record.step) == (1, late, BAD_STEP - 1)
    assert record.cause.startswith(
        f"nothing has moved for 2 s: rank {late} is late; rank {late}, after step "
    )
    assert f"rank {late}, after step {BAD_STEP - 1}, is at tests/launch/stepping.py:" in record.cause
    assert "in hang;" in record.cause
    assert f"ranks {others[0]}, {others[1]}, after step {BAD_STEP - 1}, is at" in record.cause
    said = run.attempt(1, "err").read_text()
    assert re.search(rf"^rank {late}:   .*tests/launch/stepping\.py:\d+ in hang$", said, re.MULTILINE), (
        "its stack is in the log, and says whose it is"
    )


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_cannot_even_answer_is_named(run, monkeypatch, late):
    record = attempt(run, f"stopped {late}", monkeypatch)
    assert (record.code, record.rank) == (1, late)
    assert f"rank {late} is late, without a word after step {BAD_STEP - 1}; ranks " in record.cause


def report(step: int, doing: str = "waits in all_reduce", waits: bool = True) -> Report:
    return Report(step, doing, waits)


@pytest.mark.parametrize(
    ("reports", "late"),
    [
        ({0: report(5), 2: report(5)}, 1),
        ({0: report(5), 1: report(5), 2: report(4)}, 2),
        ({0: report(5), 1: report(5, "is at model.py:3 in step", waits=False), 2: report(5)}, 1),
        ({0: report(5), 1: report(5), 2: report(5, "waits in broadcast")}, 2),
        ({0: report(5), 1: report(5), 2: report(5)}, 0),
    ],
)
def test_who_is_late(reports, late):
    assert verdict(reports, 3)[0] == late


def test_many_late_ranks_are_counted():
    cause = verdict({rank: report(3) for rank in range(4)}, 100)[1]
    assert cause.startswith(
        "ranks 4, 5, 6, 7, 8, 9, 10, 11 and 88 more are late, without a word after step 3"
    )
