"""Embedding and cross-entropy over a vocabulary whose rows are shared by the ranks of a group; logits never travel.

Rank r holds ceil(V / P) rows from r ceil(V / P) on, the last rank what is left: no padding, since nothing that
travels has the vocabulary's size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mpi_ops.collectives import all_gather_rows


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

    Cost: forward one all-gather of 2 T numbers a rank; nothing backward.
    """
    mean: Tensor = _CrossEntropy.apply(logits_TV, targets_T, first, group)  # type: ignore[no-untyped-call]
    return mean


class _CrossEntropy(torch.autograd.Function):
    """Each rank takes the softmax of its share, and backward scales it to that of the whole, in its own memory."""

    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, targets_T: Tensor, first: int, group: dist.ProcessGroup
    ) -> Tensor:
        here_T = targets_T - first
        outside_T = (here_T < 0) | (here_T >= logits_TV.shape[-1])
        column_T1 = here_T.masked_fill(outside_T, 0)[:, None]
        softmax_TV = torch.softmax(logits_TV, -1, dtype=torch.promote_types(logits_TV.dtype, torch.float32))
        wide = softmax_TV.dtype
        # The softmax of the highest logit is at least 1 / V, so its logarithm is good to the last digits.
        own_log_sum_T = logits_TV.amax(-1).to(wide) - softmax_TV.amax(-1).log()
        own_target_T = logits_TV.gather(-1, column_T1)[:, 0].to(wide).masked_fill(outside_T, 0.0)
        shares_P2T = all_gather_rows(torch.stack((own_log_sum_T, own_target_T))[None], group)
        log_sum_T, target_T = shares_P2T[:, 0].logsumexp(0), shares_P2T[:, 1].sum(0)
        ctx.save_for_backward(softmax_TV, (own_log_sum_T - log_sum_T).exp_(), column_T1, outside_T)
        ctx.dtype = logits_TV.dtype
        return (log_sum_T - target_T).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        softmax_TV, share_T, column_T1, outside_T = ctx.saved_tensors
        gradient_T = (gradients[0] / len(share_T)).expand(len(share_T))
        gradient_TV = softmax_TV.mul_((share_T * gradient_T)[:, None])
        gradient_TV.scatter_add_(-1, column_T1, gradient_T.masked_fill(outside_T, 0.0).neg_()[:, None])
        return gradient_TV.to(ctx.dtype), None, None, None
