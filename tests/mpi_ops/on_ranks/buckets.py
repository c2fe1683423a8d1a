"""GradientBuckets with more than one bucket: each becomes the sum over the ranks, in whatever order gradients come."""

from __future__ import annotations

import threading
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpi_ops import gradient_buckets
from mpi_ops.gradient_buckets import GradientBuckets
from mpi_ops.work import Work
from tests.mpi_ops.on_ranks.world import World

COUNT, LENGTH = 6, 5
NAMES = [str(i) for i in range(COUNT)]


def _made(world: World, uses: dict[str, int] | None = None) -> tuple[dict[str, Tensor], GradientBuckets]:
    """Return parameters of which two fill a bucket, and the buckets over all ranks."""
    parameters = {name: nn.Parameter(torch.ones(LENGTH, dtype=torch.float64)) for name in NAMES}
    with mock.patch.object(gradient_buckets, "BUCKET_BYTES", 2 * LENGTH * 8):
        return parameters, GradientBuckets(parameters, dist.group.WORLD, uses)


def _factor(rank: int, i: int) -> float:
    return float(1 + 7 * rank + i * i)


def _sum(world: World, i: int) -> float:
    return sum(_factor(rank, i) for rank in range(world.size))


def _check(world: World, parameters: dict[str, Tensor], times: float = 1.0) -> None:
    for i, parameter in enumerate(parameters.values()):
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, times * _sum(world, i)))


def _backward(world: World, parameters: dict[str, Tensor]) -> None:
    sum(_factor(world.rank, i) * p.sum() for i, p in enumerate(parameters.values())).backward()


def test_each_step_has_the_sum_of_its_own_gradients(world: World):
    parameters, buckets = _made(world)
    for microbatches in (1, 3):
        buckets.clear(microbatches)
        for _ in range(microbatches):
            _backward(world, parameters)
        buckets.reduce()
        _check(world, parameters, microbatches)
        assert not buckets.missing()


def test_messages_go_in_one_order_when_gradients_come_in_others(world: World):
    parameters, buckets = _made(world)
    buckets.clear(1)
    for i in range(COUNT):
        at = (i + 2 * world.rank) % COUNT
        parameters[str(at)].grad += _factor(world.rank, at)
        buckets.came(str(at))
    buckets.reduce()
    _check(world, parameters)


def test_a_gradient_that_a_rank_lacks_counts_as_zero_and_is_named(world: World):
    parameters, buckets = _made(world)
    buckets.clear(1)
    for i, (name, parameter) in enumerate(parameters.items()):
        if (name, world.rank) != ("3", 0):
            parameter.grad += _factor(world.rank, i)
            buckets.came(name)
    buckets.reduce()
    assert buckets.missing() == (["3"] if world.rank == 0 else [])
    lacking = _sum(world, 3) - _factor(0, 3)
    torch.testing.assert_close(parameters["3"].grad, torch.full((LENGTH,), lacking, dtype=torch.float64))


def test_a_parameter_of_two_uses_waits_for_both(world: World):
    parameters, buckets = _made(world, {"5": 2})
    buckets.clear(1)
    for name in ("5", "4", "5"):
        parameters[name].grad += _factor(world.rank, int(name))
        buckets.came(name)
        world.comm.Barrier()  # what left too early has arrived
    buckets.reduce()
    for name, times in (("5", 2), ("4", 1)):
        want = torch.full((LENGTH,), times * _sum(world, int(name)), dtype=torch.float64)
        torch.testing.assert_close(parameters[name].grad, want)


def test_what_is_under_way_is_polled_when_gradients_come(world: World):
    parameters, buckets = _made(world)
    buckets.clear(1)
    with mock.patch.object(Work, "is_completed", autospec=True, side_effect=Work.is_completed) as polled:
        _backward(world, parameters)
    assert polled.call_count >= 2, "the first bucket's reduction, as each of the second's gradients came"
    buckets.reduce()
    _check(world, parameters)


def test_gradients_travel_by_themselves_only_behind_a_backward_that_leaves_the_core_idle(world: World):
    parameters, buckets = _made(world)
    for cpu_share in (0.1, 0.9):
        for _ in range(2):  # the first of each kind shows what the second can expect
            promised = _step_by(_Clocks(cpu_share), world, parameters, buckets)
        assert bool(promised) is (cpu_share < 0.5)


def test_moving_messages_is_no_computing(world: World):
    parameters, buckets = _made(world)
    for promises in (0, COUNT // 2):  # though the first step spends most of its time on messages
        clocks = _Clocks(0.1)

        def move(clocks: _Clocks = clocks) -> None:
            clocks.spend(9.0)
            GradientBuckets._move(buckets)

        with mock.patch.object(buckets, "_move", move):
            assert _step_by(clocks, world, parameters, buckets) == promises


def test_backward_polls_nothing_that_a_thread_moves(world: World):
    parameters, buckets = _made(world)
    _step_by(_Clocks(0.1), world, parameters, buckets)
    polled_by = []

    def note(work: Work) -> bool:
        polled_by.append(threading.current_thread())
        return is_completed(work)

    is_completed = Work.is_completed
    buckets.clear(1)
    with mock.patch.object(Work, "is_completed", autospec=True, side_effect=note):
        _backward(world, parameters)
        assert threading.current_thread() not in polled_by
    buckets.reduce()
    _check(world, parameters)


def _step_by(clocks: _Clocks, world: World, parameters: dict[str, Tensor], buckets: GradientBuckets) -> int:
    """Make one step by these clocks; return how many of its messages went by themselves."""
    with (
        mock.patch.object(gradient_buckets, "time", clocks),
        mock.patch.object(Work, "get_future", autospec=True, side_effect=Work.get_future) as promised,
    ):
        buckets.clear(1)
        _backward(world, parameters)
        buckets.reduce()
    _check(world, parameters)
    return promised.call_count


class _Clocks:
    """Clocks of a machine on which this thread has a share of its core; how busy the real one is can't be chosen."""

    def __init__(self, cpu_share: float) -> None:
        self._cpu_share = cpu_share
        self._now_s = self._cpu_s = 0.0

    def spend(self, cpu_s: float) -> None:
        """Pass so much time at work."""
        self._now_s += cpu_s
        self._cpu_s += cpu_s

    def perf_counter(self) -> float:
        self._now_s += 1.0
        self._cpu_s += self._cpu_share
        return self._now_s

    def thread_time(self) -> float:
        return self._cpu_s
