"""A wrong pipeline schedule is found before it runs, and said in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpi_ops.errors import ScheduleError
from mpi_ops.schedule import Action, placement, schedule
from mpi_ops.schedule_check import check, render, simulate

VARIANTS = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zero_bubble", 1), ("zbv", 2), ("dualpipev", 2)]
MICROBATCHES = 5
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


@st.composite
def schedules(draw):
    """A sound schedule, its placement, and one action's rank and index in it."""
    (name, stages), ranks = draw(st.sampled_from(VARIANTS)), draw(st.integers(2, 4))
    lists = schedule(name, ranks, MICROBATCHES, stages)
    rank = draw(st.integers(0, ranks - 1))
    return lists, placement(name, ranks, stages), rank, draw(st.integers(0, len(lists[rank]) - 1))


def refused(lists, stages) -> str:
    with pytest.raises(ScheduleError) as error:
        check(lists, stages, MICROBATCHES)
    return str(error.value)


@unhurried
@given(schedules())
def test_any_one_missing_action_is_found(drawn):
    lists, stages, rank, index = drawn
    gone = lists[rank].pop(index)
    assert f"stage {gone.stage}, microbatch {gone.microbatch}: has " in refused(lists, stages)


@unhurried
@given(schedules(), st.integers(0, 1000))
def test_any_one_repeated_action_is_found(drawn, where):
    lists, stages, rank, index = drawn
    twice = lists[rank][index]
    lists[rank].insert(where % (len(lists[rank]) + 1), twice)
    says = refused(lists, stages)
    assert f"stage {twice.stage}, microbatch {twice.microbatch}: has " in says
    assert f"{twice.kind} {twice.kind}" in says


@unhurried
@given(schedules(), st.sampled_from("FBIW"))
def test_any_one_action_of_another_kind_is_found(drawn, kind):
    lists, stages, rank, index = drawn
    was = lists[rank][index]
    lists[rank][index] = replace(was, kind=kind)
    if kind == was.kind:
        check(lists, stages, MICROBATCHES)
    else:
        refused(lists, stages)


@unhurried
@given(schedules(), st.sampled_from([-1, MICROBATCHES]))
def test_a_microbatch_outside_the_batch_is_found(drawn, microbatch):
    lists, stages, rank, index = drawn
    lists[rank].append(replace(lists[rank][index], microbatch=microbatch))
    assert refused(lists, stages) == f"{lists[rank][-1]}: the microbatches are 0 to 4"


@unhurried
@given(schedules())
def test_an_action_on_another_rank_is_found(drawn):
    lists, stages, rank, index = drawn
    moved = lists[rank].pop(index)
    other = (rank + 1) % len(lists)
    lists[other].append(moved)
    held = ", ".join(map(str, stages[other]))
    assert refused(lists, stages) == f"rank {other}, {moved}: one of F, B, I, W on stages {held}"


@unhurried
@given(schedules())
def test_an_action_before_what_it_needs_is_a_deadlock(drawn):
    lists, stages, rank, index = drawn
    late = lists[rank][index]
    same = [a for a in lists[rank] if (a.stage, a.microbatch) == (late.stage, late.microbatch)]
    at = max(same.index(late) - 1, 0)  # every neighbouring pair: F and B, F and I, I and W
    first, then = (lists[rank].index(action) for action in same[at : at + 2])
    lists[rank][first], lists[rank][then] = lists[rank][then], lists[rank][first]
    assert "deadlock" in refused(lists, stages)


def test_a_deadlock_names_what_each_rank_waits_for():
    lists, stages = schedule("1f1b", 3, 4), placement("1f1b", 3)
    lists[1].insert(0, lists[1].pop(lists[1].index(Action("B", 1, 0))))
    with pytest.raises(ScheduleError) as error:
        simulate(lists, stages)
    waits = "rank 0 at B0.0 for I1.0; rank 1 at B1.0 for I2.0; rank 2 at F2.0 for F1.0"
    assert str(error.value) == f"deadlock, waiting for ever: {waits}"


def test_a_whole_backward_hands_on_its_gradient_at_its_end():
    """Stage 1 splits its backward, stage 0 does not: neighbours need not agree."""
    lists = [
        [Action("F", 0, 0), Action("B", 0, 0)],
        [Action("F", 1, 0), Action("I", 1, 0), Action("W", 1, 0)],
    ]
    check(lists, [[0], [1]], 1)
    assert simulate(lists, [[0], [1]], backward_s=8).makespan_s == 1 + 1 + 4 + 8
    mirrored = [
        [Action("F", 0, 0), Action("I", 0, 0), Action("W", 0, 0)],
        [Action("F", 1, 0), Action("B", 1, 0)],
    ]
    timed = simulate(mirrored, [[0], [1]], backward_s=8)
    assert timed.makespan_s == 1 + 1 + 8 + 8
    assert timed.busy_s == (9, 9)


def test_a_split_backward_frees_its_inputs_first():
    kinds = [("F", 0), ("F", 1), ("I", 0), ("F", 2), ("I", 1), ("I", 2), ("W", 0), ("W", 1), ("W", 2)]
    timed = simulate([[Action(kind, 0, microbatch) for kind, microbatch in kinds]], [[0]])
    assert (timed.peak_in_flight, timed.peak_until_inputs) == ((3,), (2,))


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([[0], [0]], r"placement \[\[0\], \[0\]\]: each stage from 0 on, on exactly one rank"),
        ([[0], [2]], "each stage from 0 on"),
        ([[0], [1], [2]], "schedule of 2 ranks: the placement has 3"),
    ],
)
def test_a_placement_that_is_none_is_found(stages, says):
    lists = schedule("1f1b", 2, MICROBATCHES)
    for use in (simulate, render, lambda *both: check(*both, MICROBATCHES)):
        with pytest.raises(ScheduleError, match=says):
            use(lists, stages)


def test_a_kind_that_does_not_exist_is_found():
    with pytest.raises(ScheduleError, match=r"rank 0, S0\.0: one of F, B, I, W on stages 0"):
        simulate([[Action("S", 0, 0)]], [[0]])


def test_a_schedule_is_drawn_as_in_the_papers():
    assert render(schedule("1f1b", 2, 2), placement("1f1b", 2)).splitlines() == [
        "rank 0 | F0.0 F0.1 .    .    B0.0 ---- .    B0.1 ----",
        "rank 1 | .    F1.0 B1.0 ---- F1.1 B1.1 ---- .    .",
    ]
    assert render(schedule("zbv", 2, 1, 2), placement("zbv", 2, 2)).splitlines() == [
        "rank 0 | F0.0 .    .    F3.0 I3.0 W3.0 .    .    I0.0 W0.0",
        "rank 1 | .    F1.0 F2.0 .    .    I2.0 W2.0 I1.0 W1.0 .",
    ]


def test_every_row_of_a_drawing_starts_in_the_same_column():
    rows = render(schedule("gpipe", 11, 12), placement("gpipe", 11)).splitlines()
    assert {row.index("|") for row in rows} == {8}
    assert rows[0].split()[-2:] == ["B0.11", "------"]
