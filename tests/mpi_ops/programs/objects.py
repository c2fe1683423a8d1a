"""Settings and results that travel as Python objects."""

from __future__ import annotations

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.mpi_ops.programs.model import Model
from tests.mpi_ops.programs.model import train as fit


def train() -> dict[str, list[float]]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    settings = [{"bucket_cap_mb": 0.005, "gradient_as_bucket_view": True}] if rank == 0 else [None]
    dist.broadcast_object_list(settings)
    shares = [None]
    dist.scatter_object_list(
        shares, [{"rank": r, "ranks": ranks} for r in range(ranks)] if rank == 0 else None
    )
    losses = fit(DistributedDataParallel(Model(), **settings[0]), **shares[0])
    everyone = [None] * ranks
    dist.all_gather_object(everyone, {"rank": rank, "losses": losses})
    at_root = [None] * ranks if rank == 0 else None
    dist.gather_object(losses, at_root)
    curves: list = [[]]
    if rank > 0:
        dist.recv_object_list(curves, rank - 1)
    curves[0] = [*curves[0], losses]
    if rank < ranks - 1:
        dist.send_object_list(curves, rank + 1)
    return {
        "gathered by all": means([each["losses"] for each in everyone]),
        "gathered by the root": means(at_root) if rank == 0 else [],
        "handed from rank to rank": means(curves[0]) if rank == ranks - 1 else [],
    }


def means(curves: list[list[float]]) -> list[float]:
    return [sum(step) / len(step) for step in zip(*curves, strict=True)]
