"""A mixture of SwiGLU experts in place of a feed-forward layer, its experts on one rank or shared over a group.

What a token gets depends on its own sequence alone, never on the ranks: no layout changes the result beyond
rounding, as long as sequences are whole on a rank.

Shape suffixes: B batch, L sequence, D width, F inner width, X experts (of this rank, in `Experts`), T tokens,
K experts a token, R rows: pairs of a token and one of its experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  (the field's own name for it)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mpi_ops.errors import LayoutError


class Experts(nn.Module):
    """SwiGLU experts as stacked matrices: down(silu(gate x) * up x), each for its own rows."""

    def __init__(self, experts: int, width: int, ffn_width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(experts, ffn_width, width))
        self.up = nn.Parameter(torch.empty(experts, ffn_width, width))
        self.down = nn.Parameter(torch.empty(experts, width, ffn_width))
        for weight in self.parameters():
            bound = (3 / weight.shape[-1]) ** 0.5  # deviation 1 / sqrt(columns)
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x_RD: Tensor, counts: Sequence[int]) -> Tensor:
        """Return (R, D); the rows are sorted by expert, `counts[x]` of them for expert x."""
        rows = zip(torch.split(x_RD, list(counts)), self.gate, self.up, self.down, strict=True)
        return torch.cat(
            [F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down) for x, gate, up, down in rows]
        )


class MixtureOfExperts(nn.Module):
    """Each token goes to `top_k` of the experts, and gets the sum of what they make of it, by their weights.

    A token's scores are the softmax of its router's logits, in fp32 at least. It goes to the experts with the
    largest score + bias; their weights are their scores alone, scaled to a sum of 1. (A single one's is its score:
    scaled, it would be 1, and the router learn nothing.) The bias is moved after a step, so that the experts'
    loads approach each other (auxiliary-loss-free balancing, arXiv:2408.15664).

    With a `capacity_factor`, an expert takes the first ceil(capacity_factor * L * top_k / experts) tokens of each
    sequence that choose it. Later ones lose this expert's share; the residual stream carries them on. Counted a
    sequence, the limit is the same whatever ranks, microbatches and other sequences there are, and no token
    depends on one after it.

    Raises:
        ValueError: more experts a token than there are, fewer than one, or a capacity that is not positive.
    """

    bias: Tensor
    """Added to an expert's score for the choice, (X,)."""
    counts: Tensor
    """Tokens that chose each expert in training since `take_loads`, dropped ones included, (X,)."""
    dropped: Tensor
    """Pairs of a token and an expert that were over capacity in training since then, ()."""

    def __init__(
        self, width: int, ffn_width: int, experts: int, top_k: int, capacity_factor: float | None = None
    ) -> None:
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k={top_k} of {experts} experts: 1 to {experts}")
        if capacity_factor is not None and not 0 < capacity_factor < math.inf:
            raise ValueError(f"capacity_factor={capacity_factor}: more than 0, or none for no limit")
        super().__init__()
        self.top_k, self.capacity_factor = top_k, capacity_factor
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = Experts(experts, width, ffn_width)
        self.group: dist.ProcessGroup | None = None
        with torch.device("cpu"):  # there from the start, also where the weights have no memory yet
            self.register_buffer("bias", torch.zeros(experts))
            self.register_buffer("counts", torch.zeros(experts, dtype=torch.int64), persistent=False)
            self.register_buffer("dropped", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return (B, L, D), without the residual stream. Without a capacity tokens may come flat as well, (T, D).

        Cost: with experts on P ranks, all-to-alls of X counts and of the rows there and back; in the backward
        pass of the rows there and back again. Of T top_k rows of D elements, (P-1)/P leave the rank.
        """
        x_TD = x_BLD.flatten(0, -2)
        chosen_TK, weight_TK = self.route(x_TD)
        sequences = 1 if self.capacity_factor is None else len(x_BLD)
        row_R, counts = self._sorted_by_expert(chosen_TK.view(sequences, -1), _first_time())
        token_R = row_R // self.top_k
        # Indexing would add up the gradients of a token's rows in any order, this adds them in one.
        made_RD = self._make(x_TD.index_select(0, token_R), counts)
        weighted_RD = made_RD * weight_TK.flatten()[row_R].unsqueeze(-1)
        out_TD = torch.zeros_like(x_TD, dtype=weighted_RD.dtype).index_add(0, token_R, weighted_RD)
        return out_TD.to(x_BLD.dtype).view_as(x_BLD)

    def route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's experts and their weights, both (T, K)."""
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            score_TX = F.linear(x_TD.to(wide), self.router.weight.to(wide)).softmax(-1)
        chosen_TK = (score_TX.detach() + self.bias).topk(self.top_k, -1).indices
        weight_TK = score_TX.gather(-1, chosen_TK)
        return chosen_TK, weight_TK if self.top_k == 1 else weight_TK / weight_TK.sum(-1, keepdim=True)

    @torch.no_grad()
    def update_bias(self, counts_X: Tensor, rate: float) -> None:
        """Move the bias of each expert by `rate`, up if it got less than the mean of `counts_X`, down if more.

        The caller sums the counts over all ranks that see other tokens, and passes the sum.
        """
        load_X = counts_X.to(torch.float64)
        self.bias += rate * torch.sign(load_X.mean() - load_X).to(self.bias.dtype)

    def take_loads(self) -> Tensor:
        """Return `counts` and `dropped`, (X + 1,), which start from nothing again."""
        taken = torch.cat((self.counts, self.dropped.unsqueeze(0)))
        self.counts.zero_()
        self.dropped.zero_()
        return taken

    @torch.no_grad()
    def _sorted_by_expert(self, chosen_BR: Tensor, count: bool) -> tuple[Tensor, Tensor]:
        """Return the rows that are within capacity, by expert, sequence and position, and their number (X,)."""
        (batch, rows), experts = chosen_BR.shape, self.router.out_features
        queue_BR = chosen_BR * batch + torch.arange(batch, device=chosen_BR.device).unsqueeze(-1)
        queue_R, row_R = queue_BR.flatten().sort(stable=True)
        waiting_XB = torch.bincount(queue_R, minlength=experts * batch).view(experts, batch)
        if count:
            self.counts += waiting_XB.sum(1)
        if self.capacity_factor is None:
            return row_R, waiting_XB.sum(1)
        capacity = math.ceil(self.capacity_factor * rows / experts)
        first_R = (waiting_XB.flatten().cumsum(0) - waiting_XB.flatten())[queue_R]
        within_R = torch.arange(len(row_R), device=row_R.device) - first_R < capacity
        if count:
            self.dropped += len(row_R) - within_R.sum()
        return row_R[within_R], waiting_XB.clamp(max=capacity).sum(1)

    def _make(self, x_RD: Tensor, counts_X: Tensor) -> Tensor:
        """Return what the experts make of the rows, which are sorted by expert, wherever the experts are."""
        if self.group is None:
            return self.experts(x_RD, counts_X.tolist())
        size = dist.get_world_size(self.group)
        theirs_X = torch.empty_like(counts_X)
        dist.all_to_all_single(theirs_X, counts_X, group=self.group)
        sent, received = counts_X.view(size, -1), theirs_X.view(size, -1)
        splits = sent.sum(1).tolist(), received.sum(1).tolist()
        come_RD = Exchange.apply(x_RD, *splits, self.group)  # type: ignore[no-untyped-call]
        # Every source's rows are sorted by expert; here those of one expert come together, source by source.
        expert_R = torch.arange(received.shape[1]).repeat(size).repeat_interleave(theirs_X.cpu())
        order_R = expert_R.argsort(stable=True).to(come_RD.device)
        made_RD = self.experts(come_RD[order_R], received.sum(0).tolist())
        back_RD = made_RD[order_R.argsort()]
        return Exchange.apply(back_RD, *reversed(splits), self.group)  # type: ignore[no-untyped-call]


def _first_time() -> bool:
    """Return whether this is the forward pass of training, and not a second one that backward asks for."""
    return torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1


class Exchange(torch.autograd.Function):
    """Forward: an all-to-all of rows. Backward: the all-to-all that takes the gradients back."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        """Return the rows from every rank of `group`, in the order of ranks; `sent` and `received` count them."""
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(x_RD, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the rows that were sent."""
        return _exchange(grad_RD, ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(x_RD: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Cost: one all-to-all of the rows."""
    come_RD = x_RD.new_empty(sum(received), x_RD.shape[1])
    dist.all_to_all_single(come_RD, x_RD.contiguous(), received, sent, group=group)
    return come_RD


def shard_experts(layer: MixtureOfExperts, group: dist.ProcessGroup) -> None:
    """Keep this rank's experts only, the rank-th equal stretch of them, and send tokens to the others' ranks.

    Router, bias and counts stay whole. Every rank of `group` must call forward and backward together.

    An expert sees the tokens of all P ranks of `group`: after backward its gradient is the SUM, over these ranks,
    of the gradients of their losses. Where each loss is a mean over its own rank's tokens, and the loss of the step
    is the mean over W ranks, the caller averages it over the W/P ranks that hold the same experts and then DIVIDES
    BY P. All other parameters (the router too) have their own rank's gradient: they are averaged over all W ranks.

    Raises:
        LayoutError: the ranks do not divide the experts, or the layer has been sharded before.
    """
    rank, size, experts = dist.get_rank(group), dist.get_world_size(group), layer.router.out_features
    if layer.group is not None:
        raise LayoutError("these experts are sharded already: shard a whole layer, once")
    if experts % size:
        raise LayoutError(f"{experts} experts over {size} ranks: a number of ranks that divides them")
    share = experts // size
    for name, weight in list(layer.experts.named_parameters()):
        own = weight.detach()[rank * share : (rank + 1) * share].clone()
        setattr(layer.experts, name, nn.Parameter(own, weight.requires_grad))
    layer.group = group
