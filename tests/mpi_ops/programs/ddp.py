"""DistributedDataParallel: many buckets, gradients that not every rank has, and steps of several passes."""

from __future__ import annotations

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.mpi_ops.programs.model import BLOCKS, STEPS, Model, adamw, advance, batch, loss
from tests.mpi_ops.programs.model import train as fit


def train() -> dict[str, list[float]]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return {
        "one bucket": fit(DistributedDataParallel(Model()), rank, ranks),
        "many buckets": fit(DistributedDataParallel(Model(), bucket_cap_mb=0.005), rank, ranks),
        "buckets as views": fit(
            DistributedDataParallel(Model(), bucket_cap_mb=0.005, gradient_as_bucket_view=True), rank, ranks
        ),
        "other blocks skipped on other ranks": skipping(rank, ranks),
        "two passes a step": in_two_passes(rank, ranks),
    }


def skipping(rank: int, ranks: int) -> list[float]:
    """Let each rank skip another block in each step, so that some gradients come from some ranks only."""
    model = DistributedDataParallel(Model(), find_unused_parameters=True, bucket_cap_mb=0.005)
    optimizer, losses = adamw(model.parameters()), []
    for step in range(STEPS):
        model.module.skipped = str((step + rank) % BLOCKS)
        losses.append(advance(model, optimizer, *batch(step, rank, ranks)))
    return losses


def in_two_passes(rank: int, ranks: int) -> list[float]:
    """Add up the gradients of two halves of the batch; ranks meet after the second only."""
    model = DistributedDataParallel(Model())
    optimizer, losses = adamw(model.parameters()), []
    for step in range(STEPS):
        halves = list(zip(*(whole.chunk(2) for whole in batch(step, rank, ranks)), strict=True))
        with model.no_sync():
            first = loss(model(halves[0][0]), halves[0][1]) / 2
            first.backward()
        losses.append(first.item())
        second = loss(model(halves[1][0]), halves[1][1]) / 2
        second.backward()
        losses[-1] += second.item()
        optimizer.step()
        optimizer.zero_grad()
    return losses
