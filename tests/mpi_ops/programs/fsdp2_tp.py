"""FSDP2 over one axis of a mesh, DTensor over the other."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel

from tests.mpi_ops.programs.fsdp2 import sharded
from tests.mpi_ops.programs.model import train as fit
from tests.mpi_ops.programs.tensor_parallel import split


def train() -> dict[str, list[float]]:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    losses, dp = {}, mesh["dp"]
    for reshard in (True, False):
        model = sharded(split(mesh["tp"]), dp, reshard_after_forward=reshard)
        with loss_parallel():
            losses[f"reshard_after_forward={reshard}"] = fit(model, dp.get_local_rank(), dp.size())
    return losses
