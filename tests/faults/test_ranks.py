"""What becomes of a run in which a rank fails, hangs or is told to stop: nothing that was committed is lost."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest

from analysis.store import read_run
from launch import attempt, checkpoint
from tests.faults import SLOW_S
from tests.faults.conftest import CHECKPOINT_EVERY, RANKS, SECRET, STEPS
from tests.launch import alone
from tests.workflows.llm.test_program import assert_bits_equal

UNDER_LOAD_S = 30.0
"""A lost rank ends its job in some 2 s; a machine that is busy with others takes longer."""
LIMIT_S = 6.0
HANGS = {"parallel": {"timeout_s": LIMIT_S}}


@pytest.mark.parametrize(
    ("kind", "rank", "step", "beside"),
    [
        ("raise", 1, 9, False),
        ("kill", 0, 8, True),
        *(
            pytest.param(kind, int(rank), int(step), beside, marks=pytest.mark.full)
            for rank, step in np.random.default_rng(4).integers((0, 1), (RANKS, STEPS + 1), (10, 2))
            for kind in ("raise", "kill")
            for beside in (False, True)
        ),
    ],
)
def test_a_rank_may_be_lost_before_any_step(faulty, undisturbed, kind, rank, step, beside):
    broken = faulty((kind, rank, step), train={"async_checkpoint": beside})
    lost = broken.attempt()
    after_s = broken.since_fault_s()
    print(f"{kind} on rank {rank}: the job ended after {after_s:.2f} s")
    assert (lost.code, lost.rank) == (1, rank)
    assert after_s < UNDER_LOAD_S
    assert broken.living() == []
    if kind == "raise":
        said = broken.run.attempt(1, "err").read_text()
        assert lost.cause == "ValueError: boom"
        assert said.startswith(f"[rank{rank}]: Traceback"), (
            "the traceback of the rank that failed comes first"
        )
        assert said.index("ValueError: boom") < said.index("Abort(1)")
    assert broken.attempt().code == 0
    assert broken.fired() == 1
    repeated = (step - 1) - read_run(broken.run.path).meta["restore_step"]
    # A save beside the training may have been under way: then the one before it counts.
    assert 0 <= repeated < CHECKPOINT_EVERY * (2 if beside else 1)
    assert_bits_equal(broken.outcome(), undisturbed.outcome())


@pytest.mark.parametrize(("kind", "place"), [("hang", "hang"), ("skip", "evaluate")])
def test_a_rank_that_is_not_where_others_wait_is_named_with_operation_and_step(faulty, kind, place):
    broken = faulty((kind, 1, 4), **HANGS)
    record = broken.attempt()
    after_s = broken.since_fault_s()
    print(f"{kind}: the job ended after {after_s:.2f} s, the limit being {LIMIT_S:g} s")
    assert broken.fired() == 1
    assert (record.code, record.rank, record.step) == (1, 1, 3)
    file = {"hang": "tests/faults/faulty.py", "skip": "workflows/llm/program.py"}[kind]
    assert re.fullmatch(
        rf"nothing has moved for {LIMIT_S:g} s: rank 1 is late; rank 1, after step 3, is at {file}:\d+ in {place}; "
        rf"rank 0, after step 3, waits in all_reduce on group '\w+' of {RANKS}, its collective \d+",
        record.cause,
    )
    assert after_s < LIMIT_S + UNDER_LOAD_S
    assert broken.living() == []


@pytest.mark.full
def test_ranks_that_are_slow_but_go_on_are_left_alone(faulty, undisturbed):
    """Each part takes less than the limit, and any two in a row more."""
    late = faulty(("slow", 1, 4), ("linger", 1, 4), ("slow", 1, 5), parallel={"timeout_s": 1.7 * SLOW_S})
    record = late.attempt()
    assert late.fired() == 3
    assert (record.code, record.cause) == (0, "finished")
    assert_bits_equal(late.outcome(), undisturbed.outcome())


@pytest.mark.parametrize(
    ("kind", "number", "beside"),
    [("usr1", "SIGUSR1", True), pytest.param("term", "SIGTERM", False, marks=pytest.mark.full)],
)
def test_a_warning_to_one_rank_costs_no_step(faulty, undisturbed, kind, number, beside):
    warned = faulty((kind, 1, 7), train={"async_checkpoint": beside})
    record = warned.attempt()
    assert (record.code, record.step) == (75, 8), "heard before step 7, known to all a step later"
    assert record.cause == f"{number}: all ranks stopped after step 8, committed"
    assert checkpoint.steps(warned.run.checkpoints) == [5, 8]
    assert alone.load(warned.run.checkpoints).skipped == []
    assert warned.run.attempt(1, "err").read_text() == ""
    assert warned.attempt().code == 0, "it is not stopped again"
    assert warned.fired() == 1
    assert read_run(warned.run.path).meta["restore_step"] == 8, "no step is repeated"
    assert_bits_equal(warned.outcome(), undisturbed.outcome())


def test_ranks_that_cannot_commit_are_killed_and_the_last_commit_stays(faulty, undisturbed, monkeypatch):
    """TERM first, and KILL once the grace is over: 30 s, here 2."""
    monkeypatch.setattr(attempt, "GRACE_S", 2.0)
    stuck, stop = faulty(("hang", 0, 8)), threading.Event()

    def stop_once_it_hangs() -> None:
        while not stuck.fired():
            stop.wait(0.05)
        stop.set()

    threading.Thread(target=stop_once_it_hangs, daemon=True).start()
    record = stuck.attempt(stop)
    assert (record.code, record.cause) == (130, "the driver was interrupted")
    assert stuck.living() == []
    assert alone.load(stuck.run.checkpoints).step == 5
    assert stuck.attempt().code == 0
    assert_bits_equal(stuck.outcome(), undisturbed.outcome())


def test_a_run_leaves_what_its_user_alone_may_read_and_no_secret(undisturbed):
    run = undisturbed.run
    left = [path for path in run.path.rglob("*") if path.name not in ("faults.json", "run.yaml")]
    assert [str(path) for path in left if path.stat().st_mode & 0o077] == []
    assert sum(path.is_file() for path in left) >= 8
    held = [path for path in left if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == []
    assert checkpoint.steps(run.checkpoints) == [10, STEPS]
