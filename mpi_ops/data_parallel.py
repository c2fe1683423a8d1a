"""Data parallelism: every rank holds the whole model and a share of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def all_reduce_mean(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replace each tensor by its mean over the ranks of `group`, in place; all are of one dtype.

    They travel as one flat message, so the sum's order, and with it every bit of the result, depends on the
    number of ranks alone and not on when a gradient became ready.

    Cost: one all-reduce of all elements together; a copy into the message and one back.
    """
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    flat /= world_size
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(
        list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    )
