"""Pipeline schedules: complete, without deadlock, in the published order, time and memory."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from mpi_ops.errors import ScheduleError
from mpi_ops.schedule import SCHEDULES, placement, schedule
from mpi_ops.schedule_check import Timing, check, simulate

VARIANTS = [("gpipe", 1), ("1f1b", 1), ("zero_bubble", 1), ("zbv", 2), ("dualpipev", 2)] + [
    ("interleaved", stages) for stages in (2, 3, 4)
]
RANKS = range(1, 9)
MICROBATCHES = (1, 2, 3, 5, 8, 9, 15, 16, 17, 24)
COSTS = [(1, 2), (2, 2), (1, 3), (3, 2), (1, 4)]


def both(name: str, ranks: int, microbatches: int, stages_per_rank: int = 1):
    at = ranks, stages_per_rank
    return schedule(name, ranks, microbatches, stages_per_rank), placement(name, *at)


def timing(name: str, ranks: int, microbatches: int, stages_per_rank: int = 1, **cost: float) -> Timing:
    return simulate(*both(name, ranks, microbatches, stages_per_rank), **cost)


def every_size(fewest_rounds: int = 0):
    """Pairs of ranks and microbatches with at least `fewest_rounds` microbatches a rank."""
    return [(p, m) for p in RANKS for m in MICROBATCHES if m >= fewest_rounds * p]


@pytest.mark.parametrize(("name", "stages"), VARIANTS)
def test_every_schedule_is_complete_and_ends(name, stages):
    for ranks in RANKS:
        for microbatches in range(1, 25):
            check(*both(name, ranks, microbatches, stages), microbatches)


def test_every_schedule_is_tested_and_described():
    assert {name for name, _ in VARIANTS} == set(SCHEDULES)
    assert all(says.endswith(".") for says in SCHEDULES.values())


def test_gpipe_and_1f1b_take_the_same_time():
    for p, m in every_size():
        for timed in (timing("gpipe", p, m), timing("1f1b", p, m)):
            assert timed.makespan_s == 3 * (m + p - 1)
            assert timed.bubble == pytest.approx((p - 1) / m)
            assert timed.busy_s == (3 * m,) * p


def test_gpipe_keeps_every_microbatch_and_1f1b_one_for_each_rank_left():
    for p, m in every_size():
        assert timing("gpipe", p, m).peak_in_flight == (m,) * p
        assert timing("1f1b", p, m).peak_in_flight == tuple(min(m, p - k) for k in range(p))


@pytest.mark.parametrize("v", [2, 3, 4])
def test_interleaving_divides_the_bubble_by_the_stages_a_rank(v):
    for p, m in every_size(fewest_rounds=1):
        assert timing("interleaved", p, m, v).bubble == pytest.approx((p - 1) / (v * m)), (p, m)


@pytest.mark.parametrize("v", [2, 3, 4])
def test_interleaving_fewer_microbatches_than_ranks_is_one_long_pipeline(v):
    for p, m in every_size():
        if m <= p:
            assert timing("interleaved", p, m, v).makespan_s == 3 * (v * p + m - 1), (p, m)


@pytest.mark.parametrize("v", [2, 3, 4])
def test_interleaved_memory_is_the_warm_up_and_one_more(v):
    for p in RANKS:
        for m in (p, 2 * p, 4 * p):
            want = tuple(min(v * m, (v - 1) * p + 2 * (p - 1 - k) + 1) for k in range(p))
            assert timing("interleaved", p, m, v).peak_in_flight == want


@pytest.mark.parametrize(("forward_s", "backward_s"), [cost for cost in COSTS if cost[0] >= cost[1] / 2])
def test_zero_bubble_waits_as_the_paper_says(forward_s, backward_s):
    for p, m in every_size(fewest_rounds=1):
        timed = timing("zero_bubble", p, m, forward_s=forward_s, backward_s=backward_s)
        inputs_s = weights_s = backward_s / 2
        assert timed.makespan_s - timed.busy_s[0] == (p - 1) * (forward_s + inputs_s - weights_s)


def test_zero_bubble_needs_no_more_memory_than_1f1b():
    for p, m in every_size():
        timed = timing("zero_bubble", p, m)
        assert max(timed.peak_in_flight) == min(m, p)
        assert timed.peak_until_inputs == timing("1f1b", p, m).peak_in_flight


@pytest.mark.parametrize(("name", "most_held"), [("zbv", 0), ("dualpipev", 1)])
def test_in_a_v_ranks_wait_for_one_crossing_only(name, most_held):
    for p, m in every_size(fewest_rounds=2):
        timed = timing(name, p, m, 2)
        assert timed.makespan_s == 6 * m + p - 1
        assert max(timed.peak_in_flight) <= 2 * p + most_held


@pytest.mark.parametrize(("forward_s", "backward_s"), COSTS)
def test_dualpipev_keeps_to_its_published_bubble(forward_s, backward_s):
    side_by_side_s, weights_s = forward_s + backward_s, backward_s / 2
    for p, m in every_size(fewest_rounds=2):
        timed = timing("dualpipev", p, m, 2, forward_s=forward_s, backward_s=backward_s)
        assert timed.makespan_s - timed.busy_s[0] <= (p - 1) * (side_by_side_s + backward_s - 3 * weights_s)


def test_each_invention_shrinks_the_bubble():
    for p, m in every_size(fewest_rounds=2):
        if p > 1:
            order = [("1f1b", 1), ("interleaved", 2), ("zero_bubble", 1), ("zbv", 2)]
            bubbles = [timing(name, p, m, stages).bubble for name, stages in order]
            assert all(before > after for before, after in pairwise(bubbles)), (p, m)
            assert timing("dualpipev", p, m, 2).bubble == timing("zbv", p, m, 2).bubble


@pytest.mark.parametrize(("name", "stages"), VARIANTS)
def test_a_microbatch_hops_between_ranks_only(name, stages):
    for p in RANKS:
        stages_of = placement(name, p, stages)
        rank_of = {stage: rank for rank, held in enumerate(stages_of) for stage in held}
        crossings = sum(rank_of[s] != rank_of[s + 1] for s in range(p * stages - 1))
        apart = timing(name, p, 1, stages, hop_s=10).makespan_s - timing(name, p, 1, stages).makespan_s
        assert apart == 10 * 2 * crossings


@pytest.mark.parametrize(
    ("name", "stages", "want"),
    [
        ("1f1b", 1, [[0], [1], [2]]),
        ("interleaved", 2, [[0, 3], [1, 4], [2, 5]]),
        ("zbv", 2, [[0, 5], [1, 4], [2, 3]]),
        ("dualpipev", 2, [[0, 5], [1, 4], [2, 3]]),
    ],
)
def test_stages_are_dealt_round_or_in_a_v(name, stages, want):
    assert placement(name, 3, stages) == want


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("2f2b", 2, 2), r"schedule='2f2b': one of gpipe, 1f1b, interleaved, zero_bubble, zbv, dualpipev"),
        (("1f1b", 0, 2), r"ranks=0: a whole number of at least 1"),
        (("1f1b", True, 2), r"ranks=True: a whole number of at least 1"),
        (("1f1b", 2, 0), r"microbatches=0: a whole number of at least 1"),
        (("1f1b", 2, 2.0), r"microbatches=2.0: a whole number of at least 1"),
        (("interleaved", 2, 2, -1), r"stages_per_rank=-1: a whole number of at least 1"),
        (("interleaved", 2, 2), r"stages_per_rank=1: schedule interleaved takes at least 2"),
        (("gpipe", 2, 2, 2), r"stages_per_rank=2: schedule gpipe takes exactly 1"),
        (("zbv", 2, 2), r"stages_per_rank=1: schedule zbv takes exactly 2"),
        (("dualpipev", 2, 4, 3), r"stages_per_rank=3: schedule dualpipev takes exactly 2"),
    ],
)
def test_what_has_no_schedule_is_refused_in_one_sentence(asked, says):
    with pytest.raises(ScheduleError) as refused:
        schedule(*asked)
    assert str(refused.value) == says
    assert refused.value.exit_code == 2


def test_schedules_are_made_without_torch():
    program = (
        "import sys, mpi_ops.schedule_check; sys.exit('torch' in sys.modules or 'mpi4py' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0


def torch_order(name: str, ranks: int, microbatches: int, stages: int) -> list[list[str]]:
    """What torch computes on each rank; its schedules want process groups, their orders do not."""
    kind = {
        "gpipe": torch_schedules.ScheduleGPipe,
        "1f1b": torch_schedules.Schedule1F1B,
        "interleaved": torch_schedules.ScheduleInterleaved1F1B,
        "zero_bubble": torch_schedules.ScheduleInterleavedZeroBubble,
        "zbv": torch_schedules.ScheduleZBVZeroBubble,
        "dualpipev": torch_schedules.ScheduleDualPipeV,
    }[name]
    theirs = object.__new__(kind)
    theirs._n_microbatches, theirs.pp_group_size, theirs.n_local_stages = microbatches, ranks, stages
    theirs._num_stages = theirs.num_stages = ranks * stages
    theirs.microbatches_per_round = microbatches // max(1, microbatches // ranks)
    if stages == 1 and name != "zero_bubble":
        orders = theirs._get_pipeline_order()
    else:
        orders = {rank: theirs._calculate_single_rank_operations(rank) for rank in range(ranks)}
    return [[step for action in orders[rank] if action for step in flat(action)] for rank in range(ranks)]


def flat(action) -> list[str]:
    kind = action.computation_type.value
    if action.sub_actions:
        return [step for part in action.sub_actions for step in flat(part)]
    return [f"{kind}{action.stage_index}.{action.microbatch_index}"] if kind in ("F", "B", "I", "W") else []


def torch_takes(name: str, ranks: int, microbatches: int) -> bool:
    if name == "interleaved":
        return microbatches % max(1, microbatches // ranks) == 0
    least = {"dualpipev": 2 * ranks, "1f1b": ranks, "zero_bubble": ranks}
    return microbatches >= least.get(name, 1)


@pytest.mark.parametrize(("name", "stages"), VARIANTS)
def test_the_order_is_that_of_torch(name, stages):
    for p, m in every_size():
        if not torch_takes(name, p, m):
            continue
        ours = [[str(action) for action in actions] for actions in schedule(name, p, m, stages)]
        theirs = torch_order(name, p, m, stages)
        if name == "zbv":  # torch drains the weights of one stage, then of the other
            ours, theirs = ([without_weights(row) for row in order] for order in (ours, theirs))
        if name == "1f1b":  # without a warm-up, torch 2.13 counts forwards from 1 (its drawing only)
            assert theirs.pop()[0] == f"F{p - 1}.1"
            ours.pop()
        assert ours == theirs, (p, m)


def without_weights(steps: list[str]) -> list[str]:
    return [step for step in steps if not step.startswith("W")]
