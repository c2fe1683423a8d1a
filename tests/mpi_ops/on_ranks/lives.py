"""Groups come and go, with their communicators; the last case leaves torch.distributed and joins it again."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from mpi4py import MPI

from mpi_ops.backend import register
from mpi_ops.errors import BackendError
from mpi_ops.process_group import destroy_process_group, init_process_group
from tests.mpi_ops.on_ranks.world import World


def _sum_of_ones(group=None):
    tensor = torch.ones(3)
    dist.all_reduce(tensor, group=group)
    return tensor[0].item()


def come_and_go(world: World, times: int) -> None:
    """Create and destroy groups, one at a time."""
    for _ in range(times):
        group = dist.new_group()
        assert _sum_of_ones(group) == world.size
        dist.destroy_process_group(group)
        assert group.comm == MPI.COMM_NULL


def test_fifty_groups_come_and_go(world: World):
    come_and_go(world, 50)


def test_a_destroyed_group_is_forgotten(world: World):
    group = dist.new_group()
    _sum_of_ones(group)
    seen = weakref.ref(group)
    dist.destroy_process_group(group)
    del group
    gc.collect()
    assert seen() is None


def test_a_group_survives_its_sibling_and_has_its_own_messages(world: World):
    one, other = dist.new_group(), dist.new_group()
    works = [dist.all_reduce(torch.ones(1), group=group, async_op=True) for group in (one, other)]
    works[1].wait()
    works[0].wait()
    dist.destroy_process_group(one)
    assert _sum_of_ones(other) == world.size
    dist.destroy_process_group(other)


def test_only_the_members_of_a_group_have_to_make_it(world: World):
    members = [0, world.size - 1]
    if world.rank in members:
        group = dist.new_group(members, use_local_synchronization=True)
        assert _sum_of_ones(group) == 2
        dist.destroy_process_group(group)


def test_a_group_destroyed_with_work_under_way_harms_nobody(world: World):
    group = dist.new_group()
    tensor = torch.ones(100_000)
    dist.all_reduce(tensor, group=group, async_op=True)
    dist.destroy_process_group(group)
    del group
    gc.collect()
    assert _sum_of_ones() == world.size


def test_memory_outlives_a_group_while_mpi_may_write_into_it(world: World):
    group, tensor = dist.new_group(), torch.ones(100_000)
    memory = weakref.ref(tensor)
    with world.meeting_after():
        if world.rank == 0:
            dist.all_reduce(tensor, group=group, async_op=True)
            dist.destroy_process_group(group)
            del tensor
            gc.collect()
            assert memory() is not None
    if world.rank:
        dist.all_reduce(tensor, group=group)
        dist.destroy_process_group(group)
    assert _sum_of_ones() == world.size


def test_a_group_knows_its_name_after_its_end(world: World):
    group = dist.new_group(group_desc="mesh_tp")
    name = group.group_name
    dist.destroy_process_group(group)
    assert group.group_name == name
    assert str(group) == f"group 'mesh_tp' of {world.size}"
    assert group.getBackendName() == "mpi4py"


def test_the_backend_serves_beside_a_world_of_gloo(world: World):
    destroy_process_group(world.comm)
    init_process_group(world.comm, "gloo")
    register()
    with pytest.raises(BackendError, match=r"needs a communicator: .*or pg_options=comm beside a world of"):
        dist.new_group(backend="mpi4py")
    backwards = world.comm.Split(0, -world.rank)
    if world.rank != backwards.rank:
        with pytest.raises(
            BackendError, match=rf"^rank {backwards.rank} of {world.size} in MPI, but {world.rank}"
        ):
            dist.new_group(backend="mpi4py", pg_options=backwards)
    else:
        dist.new_group(backend="mpi4py", pg_options=backwards)
    backwards.Free()
    world.comm.Barrier()


def test_leaving_and_joining_again_leaves_nothing_behind(world: World):
    for backend in ("mpi4py", "gloo", "mpi4py"):
        destroy_process_group(world.comm)
        init_process_group(world.comm, backend)
        assert dist.get_backend() == backend
        assert _sum_of_ones() == world.size
