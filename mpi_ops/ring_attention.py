"""Exact causal attention over a sequence that is cut over the ranks of a group: keys and values go round a ring.

A rank holds two chunks of the sequence, one from the front and its mirror image from the back. So every rank sees
the same number of pairs, and of another rank's keys it needs either all for its late queries or the early ones
for all of its queries: a half, never masked. Only a rank's own block has a mask. Of documents packed into one
sequence, each has a stretch of a block's queries and one of its keys; what lies between two is not computed.

Shape suffixes: B batch, L local sequence, S whole sequence, H query heads, K key heads, E head width; a leading 2 is
key and value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpi_ops import block_attention
from mpi_ops.errors import LayoutError, TensorError

Stretches = dict[int, slice]
"""Document -> where its tokens lie: one after another, since a share's positions ascend."""


def zigzag(length: int, size: int, rank: int) -> Tensor:
    """Return the positions (length / size,) that `rank` of `size` holds: chunks rank and 2 size - 1 - rank.

    Raises:
        LayoutError: the sequence cannot be cut into 2 size equal chunks, or there is no such rank.
    """
    if size < 1 or not 0 <= rank < size:
        raise LayoutError(f"rank {rank} of {size}: the ranks are 0 to size - 1")
    if length % (2 * size):
        raise LayoutError(f"a sequence of {length} positions over {size} ranks: a multiple of {2 * size}")
    chunks = torch.arange(length).view(2 * size, -1)
    return torch.cat((chunks[rank], chunks[2 * size - 1 - rank]))


def ring_attention(
    q_BHLE: Tensor,
    k_BKLE: Tensor,
    v_BKLE: Tensor,
    positions_BS: Tensor | None = None,
    *,
    group: dist.ProcessGroup,
) -> Tensor:
    """Return softmax(q k^T / sqrt(E)) v for this rank's queries, causal over the whole sequence, (B, H, L, E).

    Every rank of `group` passes its zigzag share of the sequence; each key head serves H/K query heads in turn.
    Blocks are merged in fp32 at least, and gradients of keys and values travel and add up in it. With the positions
    of all tokens of the whole sequences, queries see their own document only: one begins at each 0.

    Raises:
        TensorError: the shapes or dtypes do not go together.
        LayoutError: L is odd, and there is more than one rank.

    Cost: with P ranks and n bytes of a rank's keys and values, forward P-1 messages of n; backward P-2 of n and
    P-1 of n (2 n where these are bf16 or fp16). All go to one neighbour, behind a block's computation.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    _check(q_BHLE, k_BKLE, v_BKLE, size)
    blocks = [Window.of(rank, source, q_BHLE.shape[2]) for source in range(size)]
    windows = [[block] for block in blocks]
    if positions_BS is not None:
        if positions_BS.shape != (q_BHLE.shape[0], size * q_BHLE.shape[2]):
            raise TensorError(f"positions {tuple(positions_BS.shape)}: (B, S), those of the whole sequences")
        shares = [_documents(positions_BS, zigzag(positions_BS.shape[1], size, each)) for each in range(size)]
        windows = [block.within(shares[rank], theirs) for block, theirs in zip(blocks, shares, strict=True)]
    attended: Tensor = RingAttention.apply(q_BHLE, k_BKLE, v_BKLE, windows, group)  # type: ignore[no-untyped-call]
    return attended


class RingAttention(torch.autograd.Function):
    """Forward: keys and values move up one rank a step. Backward: down again, from where they ended.

    The way back starts with the last block of the way there and ends with a rank's own: the gradients of its keys,
    having been everywhere else, come home while it computes that one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BHLE: Tensor,
        k_BKLE: Tensor,
        v_BKLE: Tensor,
        windows: Sequence[Sequence[Window]],
        group: dist.ProcessGroup,
    ) -> Tensor:
        """Return (B, H, L, E); `windows` are those of each rank's block."""
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        if q_BHLE.stride(-1) != 1:  # the kernels take it for granted, of keys and values as well
            q_BHLE = q_BHLE.contiguous()
        own_2BKLE = kv_2BKLE = torch.stack((k_BKLE, v_BKLE))
        out_BHLE = torch.empty_like(q_BHLE, dtype=_wide(q_BHLE), memory_format=torch.contiguous_format)
        sum_BHL = out_BHLE.new_empty(q_BHLE.shape[:3])
        for step in range(size):
            moving = [_pass(kv_2BKLE, group, 1)] if step < size - 1 else []
            for window in windows[(rank - step) % size]:
                block_BHLE, block_sum_BHL = _attend(q_BHLE, kv_2BKLE, window, moving)
                out, total = out_BHLE[window.rows], sum_BHL[window.rows]
                if step == 0:  # its own block, in which each query sees itself at least
                    out.copy_(block_BHLE)
                    total.copy_(block_sum_BHL)
                else:
                    _merge(out, total, block_BHLE, block_sum_BHL)
            for transfer in moving:
                kv_2BKLE = transfer.wait()
        out_BHLE = out_BHLE.to(q_BHLE.dtype)
        ctx.group, ctx.windows = group, windows
        ctx.save_for_backward(q_BHLE, own_2BKLE, kv_2BKLE, out_BHLE, sum_BHL)
        return out_BHLE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHLE: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of q, k and v."""
        q_BHLE, own_2BKLE, kv_2BKLE, out_BHLE, sum_BHL = ctx.saved_tensors
        if grad_BHLE.stride(-1) != 1:  # a sum's has none, and the GPU's kernel takes it for granted
            grad_BHLE = grad_BHLE.contiguous()
        group, rank, size = ctx.group, dist.get_rank(ctx.group), dist.get_world_size(ctx.group)
        dq_BHLE = torch.zeros_like(q_BHLE, dtype=_wide(q_BHLE))
        coming: list[Transfer] = []
        for step in range(size):
            moving = [_pass(kv_2BKLE, group, -1)] if step < size - 2 else []
            windows, polled = ctx.windows[(rank + 1 + step) % size], (*moving, *coming)
            whole = (grad_BHLE, q_BHLE, out_BHLE, sum_BHL)
            found = [_gradients(*whole, kv_2BKLE, window, polled) for window in windows]
            dkv_2BKLE = coming[0].wait() if coming else torch.zeros_like(own_2BKLE, dtype=_wide(q_BHLE))
            for window, (block_dq_BHLE, block_dkv_2BKLE) in zip(windows, found, strict=True):
                dq_BHLE[window.rows] += block_dq_BHLE
                dkv_2BKLE[window.columns] += block_dkv_2BKLE
            coming = [_pass(dkv_2BKLE, group, -1)] if step < size - 1 else []
            kv_2BKLE = moving[0].wait() if moving else own_2BKLE
        dk_BKLE, dv_BKLE = dkv_2BKLE.to(own_2BKLE.dtype)
        return dq_BHLE.to(q_BHLE.dtype), dk_BKLE, dv_BKLE, None, None


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a block that is not wholly in the future, or what one document has of it."""

    queries: slice
    keys: slice
    causal: bool
    """Whether queries and keys are the same positions, so that there is a mask."""
    sequence: int | None = None
    """The one of the batch that the document is in; None for all."""

    @property
    def _sequences(self) -> slice:
        return slice(None) if self.sequence is None else slice(self.sequence, self.sequence + 1)

    @property
    def rows(self) -> tuple[slice, ...]:
        """Where its queries lie in (B, H, L, ...)."""
        return self._sequences, slice(None), self.queries

    @property
    def columns(self) -> tuple[slice, ...]:
        """Where its keys and values lie in (2, B, K, L, E)."""
        return slice(None), self._sequences, slice(None), self.keys

    def within(self, ours: Sequence[Stretches], theirs: Sequence[Stretches]) -> list[Window]:
        """Return the window's parts within one document each, for the queries' and the keys' documents."""
        parts = []
        for sequence, (queries, keys) in enumerate(zip(ours, theirs, strict=True)):
            for document in queries.keys() & keys.keys():
                rows, columns = _cut(self.queries, queries[document]), _cut(self.keys, keys[document])
                if rows.start < rows.stop and columns.start < columns.stop:
                    parts.append(Window(rows, columns, self.causal, sequence))
        return parts

    @classmethod
    def of(cls, rank: int, source: int, length: int) -> Window:
        """Return what the queries of `rank` see of the keys of `source`, each with `length` positions."""
        everything = slice(0, length)
        if source == rank:
            return cls(everything, everything, causal=True)
        if source < rank:
            return cls(everything, slice(0, length // 2), causal=False)
        return cls(slice(length // 2, length), everything, causal=False)


def _documents(positions_BS: Tensor, share_L: Tensor) -> list[Stretches]:
    """Return, for each sequence, where the documents' tokens lie in a rank's share of it."""
    documents_BL = (positions_BS == 0).cumsum(1)[:, share_L]
    found = []
    for documents_L in documents_BL:
        numbers, counts = (each.tolist() for each in documents_L.unique_consecutive(return_counts=True))
        ends = [0, *accumulate(counts)]
        found.append({n: slice(*ends[i : i + 2]) for i, n in enumerate(numbers)})
    return found


def _cut(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))


@dataclass(frozen=True, slots=True)
class Transfer:
    """A message to one neighbour and one from the other, under way."""

    sent: Tensor
    received: Tensor
    works: Sequence[dist.Work]

    def poll(self) -> None:
        """Let MPI move what it can."""
        for work in self.works:
            work.is_completed()

    def wait(self) -> Tensor:
        """Return what came, once what was sent is free as well."""
        for work in self.works:
            work.wait()
        return self.received


def _pass(tensor: Tensor, group: dist.ProcessGroup, by: int) -> Transfer:
    """Start to send `tensor` `by` ranks up the ring, and to receive one like it from as far down."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    received = torch.empty_like(tensor)
    # Together, since NCCL would do one after the other: every rank would wait to receive before any sends.
    there = dist.P2POp(dist.isend, tensor, group=group, group_peer=(rank + by) % size)
    back = dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - by) % size)
    return Transfer(tensor, received, dist.batch_isend_irecv([back, there]))


def _attend(
    q_BHLE: Tensor, kv_2BKLE: Tensor, window: Window, moving: Sequence[Transfer]
) -> tuple[Tensor, Tensor]:
    """Return the window's attention and the log of each query's sum; MPI is polled after every key head."""
    outs, sums = [], []
    q_BHLE = q_BHLE[window.rows]
    for heads, (k, v) in _by_key_head(q_BHLE.shape[1], kv_2BKLE[window.columns]):
        out, log_sum = block_attention.attend(q_BHLE[:, heads], k, v, window.causal)
        outs.append(out)
        sums.append(log_sum)
        for transfer in moving:
            transfer.poll()
    return torch.cat(outs, 1), torch.cat(sums, 1)


def _gradients(
    grad_BHLE: Tensor,
    q_BHLE: Tensor,
    out_BHLE: Tensor,
    sum_BHL: Tensor,
    kv_2BKLE: Tensor,
    window: Window,
    moving: Sequence[Transfer],
) -> tuple[Tensor, Tensor]:
    """Return the window's share of the gradients of its queries, and of its keys and values.

    Outputs and sums are those over all keys, which makes the shares add up.
    """
    dqs, dkvs = [], []
    rows = [each[window.rows] for each in (grad_BHLE, q_BHLE, out_BHLE, sum_BHL)]
    for heads, (k, v) in _by_key_head(q_BHLE.shape[1], kv_2BKLE[window.columns]):
        grad, q, out, log_sum = (each[:, heads] for each in rows)
        dq, dk, dv = block_attention.gradients(grad, q, k, v, out, log_sum, window.causal)
        dqs.append(dq)
        dkvs.append(torch.stack((dk, dv)).sum(2, keepdim=True, dtype=_wide(q)))
        for transfer in moving:
            transfer.poll()
    return torch.cat(dqs, 1), torch.cat(dkvs, 2)


def _by_key_head(query_heads: int, kv_2BKLE: Tensor) -> list[tuple[slice, Tensor]]:
    """Return, for each key head, its query heads and its key and value, repeated for each of them (no copy)."""
    share = query_heads // kv_2BKLE.shape[2]
    return [
        (
            slice(head * share, (head + 1) * share),
            kv_2BKLE[:, :, head : head + 1].expand(-1, -1, share, -1, -1),
        )
        for head in range(kv_2BKLE.shape[2])
    ]


def _merge(out_BHLE: Tensor, sum_BHL: Tensor, block_BHLE: Tensor, block_sum_BHL: Tensor) -> None:
    """Take a block into the attention over the keys so far, in place."""
    total_BHL = torch.logaddexp(sum_BHL, block_sum_BHL)
    out_BHLE *= (sum_BHL - total_BHL).exp().unsqueeze(-1)
    out_BHLE += block_BHLE * (block_sum_BHL - total_BHL).exp().unsqueeze(-1)
    sum_BHL.copy_(total_BHL)


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype that sums are kept in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _check(q_BHLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, size: int) -> None:
    shapes = f"q {tuple(q_BHLE.shape)}, k {tuple(k_BKLE.shape)}, v {tuple(v_BKLE.shape)}"
    if not q_BHLE.dtype == k_BKLE.dtype == v_BKLE.dtype:
        raise TensorError(f"q {q_BHLE.dtype}, k {k_BKLE.dtype}, v {v_BKLE.dtype}: one dtype for all")
    if q_BHLE.ndim != 4 or k_BKLE.ndim != 4 or k_BKLE.shape != v_BKLE.shape:
        raise TensorError(f"{shapes}: q is (B, H, L, E), k and v are (B, K, L, E)")
    batch, heads, length, width = q_BHLE.shape
    if k_BKLE.shape != (batch, k_BKLE.shape[1], length, width) or heads % k_BKLE.shape[1]:
        raise TensorError(f"{shapes}: alike but for the heads, those of q a multiple of those of k")
    if size > 1 and length % 2:
        raise LayoutError(f"{length} positions a rank: an even number, two chunks of the sequence")
