"""HSDP: FSDP2 on a mesh of two axes, copies along the first and shards along the second."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.mpi_ops.programs.fsdp2 import BF16, sharded
from tests.mpi_ops.programs.model import Model
from tests.mpi_ops.programs.model import train as fit


def train() -> dict[str, list[float]]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("copies", "shards"))
    return {
        "fp64": fit(sharded(Model(), mesh), rank, ranks),
        "weights kept": fit(sharded(Model(), mesh, reshard_after_forward=False), rank, ranks),
        "bf16": fit(sharded(Model().float(), mesh, mp_policy=BF16), rank, ranks),
    }
