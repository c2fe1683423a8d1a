"""FSDP2: weights that stay gathered between forward and backward or do not, in fp64 and in bf16."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tests.mpi_ops.programs.model import Model
from tests.mpi_ops.programs.model import train as fit

BF16 = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
NARROW_SUMS = MixedPrecisionPolicy(torch.bfloat16)


def sharded(model: Model, mesh: DeviceMesh, **options) -> Model:
    """Shard each block and what is left over a mesh."""
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def train() -> dict[str, list[float]]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh, losses = init_device_mesh("cpu", (ranks,)), {}
    for reshard in (True, False):
        what = f"reshard_after_forward={reshard}"
        losses[what] = fit(sharded(Model(), mesh, reshard_after_forward=reshard), rank, ranks)
        for name, policy in (("bf16", BF16), ("bf16 sums", NARROW_SUMS)):
            model = sharded(Model().float(), mesh, reshard_after_forward=reshard, mp_policy=policy)
            losses[f"{what}, {name}"] = fit(model, rank, ranks)
    return losses
