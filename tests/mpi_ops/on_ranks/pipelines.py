"""What a pipeline promises beside its numbers, which are held in every layout of a model."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from mpi4py import MPI

from mpi_ops.pipeline import Pipeline
from mpi_ops.schedule import Action
from tests.mpi_ops.on_ranks.world import World

LARGE = (1 << 20,)
"""More numbers than MPI takes off a sender before its receiver is there."""


@torch.no_grad()
def test_a_run_ends_when_all_that_it_sent_was_taken(world: World):
    """So nobody writes into memory that is still to be sent; the receiver is late."""
    time.sleep(0.3 * world.rank)
    began_s = time.monotonic()
    Pipeline(
        {world.rank: lambda x, _: torch.ones(LARGE) if x is None else x.sum()},
        [[Action("F", 0, 0)], [Action("F", 1, 0)]],
        [[0], [1]],
        world.rank,
        {(0, 1): dist.group.WORLD},
        LARGE,
        torch.float32,
        torch.device("cpu"),
    ).run()
    (_, sent_s), (received_s, _) = MPI.COMM_WORLD.allgather((began_s, time.monotonic()))
    assert received_s < sent_s
