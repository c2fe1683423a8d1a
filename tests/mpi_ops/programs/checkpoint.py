"""torch.distributed.checkpoint: saved by shards of the data, at once or behind a step; read by slices of matrices."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel
from torch.optim import Optimizer

from tests.mpi_ops.programs.fsdp2 import sharded
from tests.mpi_ops.programs.model import STEPS, Model, adamw, advance, batch
from tests.mpi_ops.programs.tensor_parallel import split


def train() -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        place = [folder]
        dist.broadcast_object_list(place)
        losses = {
            "saved at once": moved(Path(place[0]) / "at-once", in_background=False),
            "saved behind a step": moved(Path(place[0]) / "behind", in_background=True),
        }
        dist.barrier()  # before rank 0's folder goes
    return losses


def moved(folder: Path, in_background: bool) -> list[float]:
    """Train half of the steps with shards of the data, save, and the other half with slices of the matrices."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))
    model = sharded(Model(), mesh)
    optimizer = adamw(model.parameters())
    losses = [advance(model, optimizer, *batch(step, rank, ranks)) for step in range(STEPS // 2)]
    if in_background:
        own = dist.new_group()  # what the saving thread says must not come between what this one says
        saving = dcp.async_save(state(model, optimizer), checkpoint_id=folder, process_group=own)
        advance(model, optimizer, *batch(STEPS, rank, ranks))
        saving.result()
        dist.destroy_process_group(own)
    else:
        dcp.save(state(model, optimizer), checkpoint_id=folder)
    other = split(mesh)
    optimizer = adamw(other.parameters())
    found = state(other, optimizer)
    dcp.load(found, checkpoint_id=folder)
    set_state_dict(other, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    with loss_parallel():
        return losses + [advance(other, optimizer, *batch(step)) for step in range(STEPS // 2, STEPS)]


def state(model: nn.Module, optimizer: Optimizer) -> dict[str, dict]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments}
