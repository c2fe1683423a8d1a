"""DTensor: matrices cut by columns and rows, tokens shared between them, and a loss over logits that stay cut."""

from __future__ import annotations

from contextlib import nullcontext

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from tests.mpi_ops.programs.model import Model
from tests.mpi_ops.programs.model import train as fit

MATRICES = {
    "embedding": RowwiseParallel(input_layouts=Replicate()),
    "blocks.*.up": ColwiseParallel(),
    "blocks.*.down": RowwiseParallel(),
    "head": ColwiseParallel(output_layouts=Replicate()),
}
TOKENS_TOO = {
    "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
    "blocks.*.norm": SequenceParallel(),
    "blocks.*.up": ColwiseParallel(input_layouts=Shard(1)),
    "blocks.*.down": RowwiseParallel(output_layouts=Shard(1)),
    "norm": SequenceParallel(),
    "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
}


def split(mesh: DeviceMesh, plan: dict = TOKENS_TOO) -> Model:
    """Return the model cut over a mesh; with TOKENS_TOO its loss needs `loss_parallel`."""
    return parallelize_module(Model(), mesh, plan)


def train() -> dict[str, list[float]]:
    mesh, losses = init_device_mesh("cpu", (dist.get_world_size(),)), {}
    for name, plan, place in (
        ("matrices", MATRICES, nullcontext()),
        ("matrices, tokens and loss", TOKENS_TOO, loss_parallel()),
    ):
        with place:
            losses[name] = fit(split(mesh, plan))
    return losses
