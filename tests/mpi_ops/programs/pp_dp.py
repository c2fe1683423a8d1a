"""A pipeline along one axis of a mesh, copies or shards of each stage along the other."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.mpi_ops.programs.fsdp2 import sharded
from tests.mpi_ops.programs.pipelining import fit


def train() -> dict[str, list[float]]:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "pp"))
    dp, pp = mesh["dp"], mesh["pp"].get_group()
    wraps = {
        # torch 2.13 would rebuild a stage's buckets from gradients that it has counted twice, and fail.
        "DDP": lambda module: DistributedDataParallel(
            module, process_group=dp.get_group(), find_unused_parameters=True
        ),
        "FSDP2": lambda module: sharded(module, dp, reshard_after_forward=False),
    }
    return {
        f"{schedule} x {name}": fit(schedule, pp, dp.get_local_rank(), dp.size(), wrap)
        for name, wrap in wraps.items()
        for schedule in ("GPipe", "1F1B", "Interleaved1F1B")
    }
