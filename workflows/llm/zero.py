"""Shards of what data-parallel ranks would hold alike (ZeRO, 1910.02054), by torch's FSDP2.

Imported only where it is used: it loads torch's compiler, which costs a rank more than a second.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from workflows.llm.model import Transformer
from workflows.llm.moe import Experts


def shard(
    stages: Iterable[Transformer],
    group: dist.ProcessGroup,
    zero: int,
    device: torch.device,
    experts: dist.ProcessGroup | None = None,
) -> dict[str, int]:
    """Shard the rows of every parameter over `group`; return the first row that this rank holds of each.

    Where ranks hold different experts, `experts` are those with the same ones, over which their stacks are sharded.
    Gradients become means over the group that shares them out.

    Parameters may be without memory, and their shards are then: `Module.to` is to follow when they have got it.

    Moments are sharded since the optimizer sees the shards. With `zero` 1 gradients are reduced once a step, with 2
    after every microbatch, so that only their shards are kept; with 3 the weights are gathered for each use.

    Cost: 1: a step, one reduce-scatter and one all-gather of all parameters; 2: the reduce-scatter a microbatch;
    3: and two all-gathers a microbatch.
    """
    mesh, first = DeviceMesh.from_group(group, device.type), {}
    experts_mesh = None if experts is None else DeviceMesh.from_group(experts, device.type)
    for stage in stages:
        if experts_mesh is not None:
            for stack in (module for module in stage.modules() if isinstance(module, Experts)):
                fully_shard(stack, mesh=experts_mesh, reshard_after_forward=zero == 3)
        for part in (*stage.blocks.values(), stage):
            fully_shard(part, mesh=mesh, reshard_after_forward=zero == 3)
        if zero == 1:
            stage.set_requires_gradient_sync(False)
            stage.set_reshard_after_backward(False)
        for name, weight in stage.named_parameters():
            _, offset = compute_local_shape_and_global_offset(
                weight.shape, weight.device_mesh, weight.placements
            )
            first[name] = offset[0]
    return first


def let_go(stages: Iterable[nn.Module]) -> None:
    """Free the gathered weights after a forward pass that no backward follows: an update would not reach them."""
    for stage in stages:
        for part in stage.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def reduce_shards(stages: Iterable[nn.Module]) -> None:
    """Reduce the gradients that ZeRO-1 has kept whole over the microbatches, and let go of the gathered weights."""
    for stage in stages:
        assert isinstance(stage, FSDPModule)  # noqa: S101
        stage.set_requires_gradient_sync(True)
        stage.set_reshard_after_backward(True)
        root = fully_shard.state(stage)
        root._root_post_backward_final_callback()  # reduces what no backward pass has reduced, and waits for it
        stage.set_requires_gradient_sync(False)
        stage.set_reshard_after_backward(False)
