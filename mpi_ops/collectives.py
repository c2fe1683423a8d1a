"""Differentiable collectives: what a model calls where a tensor changes hands between the ranks of a group.

A gradient travels the opposite way of its value: the gather's is a reduce-scatter, and the other way round. Both
work on dimension 0, where what the ranks hold lies one after another in memory and nothing has to be copied into place.
A group of one rank, or None, costs nothing.

In the cost lines P is the group's size and n the bytes of the whole tensor, over all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mpi_ops.errors import TensorError

Group = dist.ProcessGroup | None


def group_size(group: Group) -> int:
    """Return the number of ranks, 1 for no group."""
    return 1 if group is None else group.size()


def gather(x: Tensor, group: Group) -> Tensor:
    """Return the ranks' shares one after another, (P rows, ...); the gradient is summed and each gets its share.

    Cost: forward n (P-1)/P bytes a rank in one all-gather, backward the same in one reduce-scatter.
    """
    return x if group_size(group) == 1 else _applied(_Gather, x, group)


def reduce_scatter(x: Tensor, group: Group) -> Tensor:
    """Return this rank's share of the sum over the ranks, (rows / P, ...); the gradient is gathered.

    Cost: forward n (P-1)/P bytes a rank in one reduce-scatter, backward the same in one all-gather.

    Raises:
        TensorError: the rows do not divide by the ranks.
    """
    if group_size(group) == 1:
        return x
    if len(x) % group_size(group):
        raise TensorError(f"{len(x)} rows cannot be shared equally by {group_size(group)} ranks")
    return _applied(_ReduceScatter, x, group)


def all_gather_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the ranks' shares one after another, outside of autograd."""
    whole = x.new_empty((len(x) * group.size(), *x.shape[1:]))
    dist.all_gather_single(whole, x.contiguous(), group=group)
    return whole


def sum_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's rows of the sum over the ranks, outside of autograd."""
    share = x.new_empty((len(x) // group.size(), *x.shape[1:]))
    dist.reduce_scatter_single(share, x.contiguous(), group=group)
    return share


def _applied(function: Any, x: Tensor, group: Group) -> Tensor:
    """Apply an autograd function, which is untyped."""
    made: Tensor = function.apply(x, group)
    return made


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gather_rows(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return sum_rows(gradients[0], ctx.group), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return sum_rows(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return all_gather_rows(gradients[0], ctx.group), None
