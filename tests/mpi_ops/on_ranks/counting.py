"""The counters: calls and bytes of each operation on each group, exactly."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from mpi_ops import counters
from mpi_ops.errors import TensorError
from tests.mpi_ops.on_ranks.world import World

N = 10
N_BYTES = 4 * N


def _counted(group) -> dict[str, tuple[int, int]]:
    found = [each for each in counters.snapshot() if each.group == group._label]
    assert all(each.seconds > 0 for each in found)
    return {each.op: (each.calls, each.sent_bytes) for each in found}


def _one_of_each(group, dtype=torch.float32):
    size, rank = group.size(), group.rank()
    tensor, whole = torch.zeros(N, dtype=dtype), torch.zeros(N * size, dtype=dtype)
    parts = list(whole.clone().split(N))
    dist.all_reduce(tensor, group=group)
    dist.reduce(tensor, group=group, group_dst=0)
    dist.broadcast(tensor, group=group, group_src=0)
    dist.all_gather(parts, tensor, group)
    dist.all_gather_single(whole, tensor, group)
    dist.gather(tensor, parts if rank == 0 else None, group=group, group_dst=0)
    dist.scatter(tensor, parts if rank == 0 else None, group=group, group_src=0)
    dist.reduce_scatter(tensor, parts, group=group)
    dist.reduce_scatter_single(tensor, whole, group=group)
    dist.all_to_all([each.clone() for each in parts], parts, group)
    dist.all_to_all_single(whole.clone(), whole, group=group)
    dist.barrier(group)


def test_calls_and_bytes_of_every_operation_are_exact(world: World):
    for pair in world.pairs:
        for dtype in (torch.float32, torch.bfloat16):
            counters.reset()
            _one_of_each(pair.mpi, dtype)
            own, whole = N * dtype.itemsize, N * dtype.itemsize * pair.size
            root = pair.rank == 0
            assert _counted(pair.mpi) == {
                "all_reduce": (1, own),
                "reduce": (1, own),
                "broadcast": (1, own if root else 0),
                "all_gather": (1, own),
                "all_gather_single": (1, own),
                "gather": (1, own),
                "scatter": (1, whole if root else 0),
                "reduce_scatter": (1, whole),
                "reduce_scatter_single": (1, whole),
                "all_to_all": (1, whole),
                "all_to_all_single": (1, whole),
                "barrier": (1, 0),
            }


def test_messages_count_at_the_sender(world: World):
    counters.reset()
    if world.rank == 0:
        for _ in range(3):
            dist.send(torch.zeros(N), 1)
    elif world.rank == 1:
        for _ in range(3):
            dist.recv(torch.zeros(N), 0)
    want = [{"send": (3, 3 * N_BYTES)}, {"recv": (3, 0)}] + [{}] * world.size
    assert _counted(dist.group.WORLD) == want[world.rank]


def test_groups_are_counted_apart_and_by_their_description(world: World):
    named = dist.new_group(group_desc="mesh_dp")
    counters.reset()
    for _ in range(5):
        dist.all_reduce(torch.zeros(N), group=named)
    dist.all_reduce(torch.zeros(N))
    counted = {(each.op, each.group): (each.calls, each.sent_bytes) for each in counters.snapshot()}
    assert counted == {
        ("all_reduce", "mesh_dp"): (5, 5 * N_BYTES),
        ("all_reduce", "default_pg"): (1, N_BYTES),
    }


def test_coalesced_operations_count_as_one_call_with_all_bytes(world: World):
    counters.reset()
    with dist._coalescing_manager():
        for _ in range(3):
            dist.all_reduce(torch.zeros(N))
    assert _counted(dist.group.WORLD) == {"all_reduce_coalesced": (1, 3 * N_BYTES)}


def test_a_reset_counts_from_nothing_and_refused_calls_do_not_count(world: World):
    dist.all_reduce(torch.zeros(N))
    counters.reset()
    assert counters.snapshot() == []
    with pytest.raises(TensorError):
        dist.all_reduce(torch.zeros(3, 2).T)
    assert counters.snapshot() == []
