"""The Work of an asynchronous operation: waited for, polled, awaited through a future, dropped, or given up."""

from __future__ import annotations

import gc
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from mpi4py import MPI

from mpi_ops.backend import SWEEP_AT
from mpi_ops.errors import OperationTimeoutError
from tests.mpi_ops.on_ranks.world import World

LIMIT_S = 0.3


def _until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def _all_reduce(group, value=1.0, count=1):
    tensor = torch.full((count,), float(value))
    return tensor, dist.all_reduce(tensor, group=group, async_op=True)


def test_a_handle_waited_for_is_complete_and_holds_the_result(world: World):
    for pair in world.pairs:
        tensor, work = _all_reduce(pair.mpi)
        assert work.wait() is True
        assert work.wait() is True
        assert work.is_completed()
        assert work.is_success()
        assert work.exception() is None
        assert work.result() == [tensor]
        assert tensor.item() == pair.size


def test_polling_alone_completes_an_operation(world: World):
    for pair in world.pairs:
        tensor, work = _all_reduce(pair.mpi, count=100_000)
        _until(work.is_completed)
        assert tensor[-1].item() == pair.size


def test_many_operations_fly_together_and_are_waited_for_in_any_order(world: World):
    for pair in world.pairs:
        flying = [_all_reduce(pair.mpi, value) for value in range(200)]
        for _, work in reversed(flying):
            work.wait()
        assert [tensor.item() for tensor, _ in flying] == [value * pair.size for value in range(200)]


def test_groups_do_not_disturb_each_other(world: World):
    flying = [(pair, *_all_reduce(pair.mpi, 1 + i)) for i in range(20) for pair in world.pairs]
    for _, _, work in reversed(flying) if world.rank % 2 else flying:
        work.wait()
    assert [tensor.item() for _, tensor, _ in flying] == [
        (1 + i) * pair.size for i in range(20) for pair in world.pairs
    ]


def test_a_future_completes_without_anybody_polling(world: World):
    for pair in world.pairs:
        tensor, work = _all_reduce(pair.mpi, count=100_000)
        future = work.get_future()
        assert work.get_future() is future
        doubled = future.then(lambda done: done.value()[0] * 2)
        assert torch.equal(doubled.wait(), torch.full((100_000,), 2.0 * pair.size))
        assert future.wait()[0] is tensor


def test_the_future_of_a_finished_operation_is_done(world: World):
    for pair in world.pairs:
        tensor, work = _all_reduce(pair.mpi)
        work.wait()
        assert work.get_future().done()
        assert work.get_future().value()[0] is tensor


def test_futures_of_many_operations_are_all_met(world: World):
    for pair in world.pairs:
        futures = [_all_reduce(pair.mpi, value)[1].get_future() for value in range(50)]
        got = [each[0].item() for each in torch.futures.wait_all(futures)]
        assert got == [value * pair.size for value in range(50)]


def test_a_dropped_handle_keeps_its_memory_until_the_end(world: World):
    for pair in world.pairs:
        for _ in range(4 * SWEEP_AT):
            _all_reduce(pair.mpi, count=1000)
            gc.collect(0)
            torch.full((1000,), -1.0)  # takes the freed memory, were there any
        checked, work = _all_reduce(pair.mpi)
        work.wait()
        assert checked.item() == pair.size
        _until(lambda pair=pair: all(each.is_completed() for each in tuple(pair.mpi.pending)))
        assert not pair.mpi.pending


def test_operations_nobody_waits_for_do_not_pile_up(world: World):
    for pair in world.pairs:
        for _ in range(20):
            for _ in range(SWEEP_AT):
                _all_reduce(pair.mpi)
            dist.barrier(pair.mpi)
        assert len(pair.mpi.pending) <= 3 * SWEEP_AT
        _until(lambda pair=pair: all(each.is_completed() for each in tuple(pair.mpi.pending)))


def test_a_time_out_names_the_missing_rank_of_the_world(world: World):
    members = [0, world.size - 1]
    group = dist.new_group(members, timeout=timedelta(seconds=LIMIT_S), group_desc="pair")
    with world.meeting_after():
        if world.rank == 0:
            work = _all_reduce(group)[1]
            with pytest.raises(OperationTimeoutError) as raised:
                work.wait()
            assert str(raised.value) == (
                f"all_reduce on group 'pair' of 2: not done after 0.3 s; missing: world rank {world.size - 1}"
            )
            assert work.exception() is raised.value
            assert work.is_completed()
            assert not work.is_success()
    if world.rank == members[1]:
        _all_reduce(group)[1].wait()


def test_only_the_missing_rank_is_named_and_none_that_waits(world: World):
    group, last = dist.new_group(), world.size - 1
    with world.meeting_after():
        if world.rank == 0:
            work = dist.barrier(group, async_op=True)
            for rank in range(1, last):
                _until(lambda rank=rank: group._waiting.get(f"waiting/{rank}") == b"1 barrier")
            with pytest.raises(OperationTimeoutError, match=f"missing: world rank {last}$"):
                work.wait(timedelta(seconds=LIMIT_S))
            world.comm.send("join", last)
        else:
            if world.rank == last:
                world.comm.recv(source=0)
            dist.barrier(group)


def test_a_rank_that_waits_elsewhere_is_named_with_its_place(world: World):
    """The store says so; two ranks in two collectives at once are beyond what MPI defines."""
    group = dist.new_group(timeout=timedelta(seconds=LIMIT_S))
    world.comm.Barrier()  # a rank that makes its group later would write over what is set here
    with world.meeting_after():
        if world.rank == 0:
            group._waiting.set(f"waiting/{world.size - 1}", f"{group.sequence + 1} broadcast")
            with pytest.raises(OperationTimeoutError, match=rf"{world.size - 1} \(it waits in broadcast\)$"):
                _all_reduce(group)[1].wait()
    if world.rank:
        dist.all_reduce(torch.ones(1), group=group)


def test_a_wait_may_have_its_own_limit(world: World):
    with world.meeting_after():
        if world.rank == 0:
            work = dist.barrier(async_op=True)
            with pytest.raises(OperationTimeoutError, match=r"not done after 0\.2 s"):
                work.wait(timedelta(seconds=0.2))
    if world.rank:
        dist.barrier()


def test_an_operation_may_have_its_own_limit(world: World):
    options = dist.BarrierOptions()
    options.timeout = timedelta(seconds=0.2)
    with world.meeting_after():
        if world.rank == 0:
            with pytest.raises(OperationTimeoutError, match=r"not done after 0\.2 s"):
                dist.group.WORLD.barrier(options).wait()
    if world.rank:
        dist.barrier()


def test_a_future_ends_with_the_time_out(world: World):
    group = dist.new_group(timeout=timedelta(seconds=LIMIT_S))
    with world.meeting_after():
        if world.rank == 0:
            future = _all_reduce(group)[1].get_future()
            with pytest.raises(OperationTimeoutError, match="missing: world rank 1"):
                future.wait()
    if world.rank:
        dist.all_reduce(torch.ones(1), group=group)


def test_a_receive_in_vain_says_from_whom(world: World):
    group, last = dist.new_group(timeout=timedelta(seconds=LIMIT_S)), world.size - 1
    with world.meeting_after():
        for source, words in ((last, f"world rank {last} has not taken part"), (None, "no rank has sent")):
            if world.rank == 0:
                with pytest.raises(OperationTimeoutError, match=f"^recv on .* 0.3 s; {words}$"):
                    dist.irecv(torch.zeros(1), source, group).wait()
    if world.rank == last:
        for _ in range(2):
            dist.send(torch.ones(1), 0, group)


def test_a_signal_reaches_a_rank_that_waits(world: World):
    class Rang(Exception):
        pass

    def ring(*_):
        raise Rang

    with world.meeting_after():
        if world.rank == 0:
            before = signal.signal(signal.SIGALRM, ring)
            tensor, work = _all_reduce(None)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Rang):
                work.wait()
            signal.signal(signal.SIGALRM, before)
            assert not work.is_completed()
    if world.rank:
        tensor, work = _all_reduce(None)
    work.wait()
    assert tensor.item() == world.size


def test_mpi_stays_usable_beside_the_backend(world: World):
    tensor, work = _all_reduce(None)
    assert world.comm.allreduce(world.rank, MPI.MAX) == world.size - 1
    work.wait()
    assert tensor.item() == world.size
