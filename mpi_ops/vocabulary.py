"""Embedding and cross-entropy over a vocabulary whose rows are shared by the ranks of a group; logits never travel.

Rank r holds ceil(V / P) rows from r ceil(V / P) on, the last rank what is left: no padding, since nothing that
travels has the vocabulary's size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def vocabulary_share(rows: int, ranks: int, rank: int) -> tuple[int, int]:
    """Return the first row of a rank's share of `rows`, and one past its last."""
    share = -(-rows // ranks)
    return min(rows, rank * share), min(rows, (rank + 1) * share)


def partial_lookup(tokens: Tensor, weight_VD: Tensor, first: int) -> Tensor:
    """Return the rows of those tokens that lie in this share, zeros for the others, (*tokens, D); to be summed."""
    here = tokens - first
    outside = (here < 0) | (here >= len(weight_VD))
    rows = torch.nn.functional.embedding(here.masked_fill(outside, 0), weight_VD)
    return rows.masked_fill(outside[..., None], 0.0)


def cross_entropy(logits_TV: Tensor, targets_T: Tensor, first: int, group: dist.ProcessGroup) -> Tensor:
    """Return the mean cross-entropy in nats a token over the whole vocabulary, a scalar equal on all ranks.

    `logits_TV` are those of this rank's share, which starts at row `first`. Statistics are in fp32 or better.

    Cost: forward one all-reduce of T numbers and one of 2 T; nothing backward.
    """
    mean: Tensor = _CrossEntropy.apply(logits_TV, targets_T, first, group)  # type: ignore[no-untyped-call]
    return mean


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, targets_T: Tensor, first: int, group: dist.ProcessGroup
    ) -> Tensor:
        wide_TV = logits_TV if logits_TV.dtype is torch.float64 else logits_TV.float()
        highest_T = wide_TV.amax(-1)
        dist.all_reduce(highest_T, dist.ReduceOp.MAX, group=group)
        shifted_TV = wide_TV - highest_T[:, None]
        here_T = targets_T - first
        outside_T = (here_T < 0) | (here_T >= logits_TV.shape[-1])
        row_T = here_T.masked_fill(outside_T, 0)
        own_T = shifted_TV.gather(-1, row_T[:, None])[:, 0].masked_fill(outside_T, 0.0)
        exp_TV = shifted_TV.exp_()
        sums_2T = torch.stack((exp_TV.sum(-1), own_T))
        dist.all_reduce(sums_2T, group=group)
        total_T, target_T = sums_2T
        ctx.save_for_backward(exp_TV.div_(total_T[:, None]), row_T, outside_T)
        ctx.dtype = logits_TV.dtype
        mean: Tensor = (total_T.log() - target_T).mean()
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        softmax_TV, row_T, outside_T = ctx.saved_tensors
        gradient_TV = softmax_TV.clone()
        inside = (~outside_T).to(gradient_TV.dtype)
        gradient_TV.scatter_add_(-1, row_T[:, None], -inside[:, None])
        return (gradient_TV * (gradients[0] / len(row_T))).to(ctx.dtype), None, None, None
