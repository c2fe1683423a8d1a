"""torch.distributed.pipelining: every schedule, with one stage a rank or two, in turn or in a V."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.nn import Module

from tests.mpi_ops.programs.model import STEPS, adamw, batch, loss, stage

MICROBATCHES = 4
SCHEDULES = {
    "GPipe": lambda rank, ranks: [rank],
    "1F1B": lambda rank, ranks: [rank],
    "LoopedBFS": lambda rank, ranks: [rank, rank + ranks],
    "Interleaved1F1B": lambda rank, ranks: [rank, rank + ranks],
    "InterleavedZeroBubble": lambda rank, ranks: [rank, rank + ranks],
    "ZBVZeroBubble": lambda rank, ranks: [rank, 2 * ranks - 1 - rank],
    "DualPipeV": lambda rank, ranks: [rank, 2 * ranks - 1 - rank],
}
"""Name -> the stages that a rank holds."""


def train() -> dict[str, list[float]]:
    return {name: fit(name, dist.group.WORLD) for name in SCHEDULES}


def fit(
    schedule: str,
    group: dist.ProcessGroup,
    copy: int = 0,
    copies: int = 1,
    wrap: Callable[[Module], Module] = lambda module: module,
) -> list[float]:
    """Train one of several copies of a pipeline on its share of the batches; `wrap` is laid over each stage."""
    here = SCHEDULES[schedule](group.rank(), group.size())
    stages = len(here) * group.size()
    modules = [wrap(stage(number, stages)) for number in here]
    held = [
        PipelineStage(module, number, stages, torch.device("cpu"), group=group)
        for number, module in zip(here, modules, strict=True)
    ]
    runs = get_schedule_class(schedule)(held if len(held) > 1 else held[0], MICROBATCHES, loss_fn=loss)
    optimizer = adamw([parameter for module in modules for parameter in module.parameters()])
    means = []
    for step in range(STEPS):
        tokens_BL, targets_BL = batch(step, copy, copies)
        losses: list[torch.Tensor] = []
        runs.step(*[tokens_BL] if 0 in here else [], target=targets_BL, losses=losses)
        optimizer.step()
        optimizer.zero_grad()
        if stages - 1 in here:
            means.append(torch.stack(losses).mean().item())
    return means
