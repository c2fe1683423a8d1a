"""DeviceMesh and DTensor over the backend, on four ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

from mpi_ops import counters
from mpi_ops.backend import MpiProcessGroup
from mpi_ops.layout import ParallelLayout
from tests.mpi_ops.on_ranks.world import World

WHOLE = torch.arange(7 * 10, dtype=torch.float64).reshape(7, 10)
PLACEMENTS = [(a, b) for a in (Replicate(), Shard(0), Shard(1)) for b in (Replicate(), Shard(0), Shard(1))]


def test_a_mesh_has_the_groups_of_the_layout(world: World):
    layout = ParallelLayout(dp=2, tp=2)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for axis in ("dp", "tp"):
        group = mesh.get_group(axis)
        assert isinstance(group, MpiProcessGroup)
        assert dist.get_process_group_ranks(group) in layout.axis_groups(axis)
        assert mesh.get_local_rank(axis) == layout.coords(world.rank)[axis]


def test_a_meshs_groups_are_counted_by_their_axis(world: World):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    counters.reset()
    dist.all_reduce(torch.zeros(10), group=mesh.get_group("tp"))
    assert [(each.group, each.sent_bytes) for each in counters.snapshot()] == [("mesh_tp", 40)]


def test_every_redistribution_keeps_the_tensor(world: World):
    mesh = init_device_mesh("cpu", (2, 2))
    for before in PLACEMENTS:
        tensor = distribute_tensor(WHOLE, mesh, before)
        for after in PLACEMENTS:
            moved = tensor.redistribute(mesh, after)
            assert moved.placements == after
            assert torch.equal(moved.full_tensor(), WHOLE), f"{before} to {after}"


def test_partial_sums_become_whole(world: World):
    mesh = init_device_mesh("cpu", (4,))
    for after in (Replicate(), Shard(0), Shard(1)):
        local = torch.distributed.tensor.DTensor.from_local(WHOLE, mesh, [Partial()])
        assert torch.equal(local.redistribute(mesh, [after]).full_tensor(), 4 * WHOLE)
