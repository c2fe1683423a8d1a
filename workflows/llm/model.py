"""A decoder of the Llama or GPT type in plain torch: no parallelism in here, so that any can be laid over it.

Modules take the sizes that they work with from their inputs and weights, so that they run as well on slices of both.

Shape suffixes: B batch, L sequence, D width, F inner width, H query heads, K key heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name for it)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workflows.llm.config import ModelConfig
from workflows.llm.draw import draw, give_memory
from workflows.llm.moe import MixtureOfExperts

Recompute = Literal["none", "selective", "full"]
Norm = nn.RMSNorm | nn.LayerNorm


def rotary_table(config: ModelConfig, dtype: torch.dtype, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position x frequency, each (*positions, E/2): frequency i is theta ** (-2 i / E)."""
    pair_E = torch.arange(0, config.head_width, 2, dtype=torch.float64, device=positions.device)
    frequency_E = config.rope_theta ** (-pair_E / config.head_width)
    angle_LE = positions.double().unsqueeze(-1) * frequency_E
    return angle_LE.cos().to(dtype), angle_LE.sin().to(dtype)


def rotate(x_BHLE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Return x with each pair (i, i + E/2) turned by its position's angle; angles may be those of each sequence."""
    length = x_BHLE.shape[-2]
    cos, sin = cos_LE[..., :length, :], sin_LE[..., :length, :]
    first, second = x_BHLE.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(q_BHLE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, positions_BL: Tensor | None = None) -> Tensor:
    """Return causal attention, (B, H, L, E); each key head serves H / K query heads in turn.

    With positions, within documents only: each begins where its position is 0. They lie end to end as (T, H, E), so
    that a GPU's variable-length kernel could take all at once; here each has a call, and no pair is masked in vain.
    """
    grouped = q_BHLE.shape[1] != k_BKLE.shape[1]
    if positions_BL is None:
        return F.scaled_dot_product_attention(q_BHLE, k_BKLE, v_BKLE, is_causal=True, enable_gqa=grouped)
    starts = (positions_BL.flatten() == 0).nonzero().flatten().tolist()
    lengths = [end - start for start, end in pairwise([*starts, positions_BL.numel()])]
    documents = (x.transpose(1, 2).flatten(0, 1).split(lengths) for x in (q_BHLE, k_BKLE, v_BKLE))
    attended = [
        attend(*(x_LHE.transpose(0, 1).unsqueeze(0) for x_LHE in one)).squeeze(0).transpose(0, 1)
        for one in zip(*documents, strict=True)
    ]
    return torch.cat(attended).unflatten(0, positions_BL.shape).transpose(1, 2)


class Attention(nn.Module):
    """Causal grouped-query attention, with rotary positions in a Llama."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_width, self.rotary = config.head_width, config.arch == "llama"
        bias = config.arch == "gpt"
        self.wq = nn.Linear(config.width, config.heads * self.head_width, bias=bias)
        self.wk = nn.Linear(config.width, config.key_heads * self.head_width, bias=bias)
        self.wv = nn.Linear(config.width, config.key_heads * self.head_width, bias=bias)
        self.wo = nn.Linear(config.heads * self.head_width, config.width, bias=bias)
        self.attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = attend
        self.recompute = False
        """Whether scores and their product with the values are computed again in the backward pass."""

    def forward(
        self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor, positions_BL: Tensor | None = None
    ) -> Tensor:
        """Return the attended values, (B, L, D); with positions, those of each token's own document."""
        q_BHLE, k_BKLE, v_BKLE = (self._heads(matrix(x_BLD)) for matrix in (self.wq, self.wk, self.wv))
        if self.rotary:
            q_BHLE, k_BKLE = (rotate(x, cos_LE, sin_LE).to(v_BKLE.dtype) for x in (q_BHLE, k_BKLE))
        again = self.recompute and torch.is_grad_enabled()
        attend = partial(checkpoint, self.attend, use_reentrant=False) if again else self.attend
        return self.wo(attend(q_BHLE, k_BKLE, v_BKLE, positions_BL).transpose(1, 2).flatten(2))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU, down(silu(gate x) * up x), in a Llama; down(gelu(up x)) in a GPT."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.arch == "gpt"
        self.gate = None if bias else nn.Linear(config.width, config.ffn, bias=False)
        self.up = nn.Linear(config.width, config.ffn, bias=bias)
        self.down = nn.Linear(config.ffn, config.width, bias=bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return (B, L, D)."""
        if self.gate is None:
            return self.down(F.gelu(self.up(x_BLD)))
        return self.down(F.silu(self.gate(x_BLD)) * self.up(x_BLD))


class Positions(nn.Module):
    """Learned positions of a GPT, added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.seq_len, config.width))
        self.share = 0
        """Which share of the batch's tokens comes, when they come flat."""

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the stream, (B, L, D) or flat (T, D), with each token's position of `rows`, (B, L) or (L,), added."""
        if x.ndim == 3:
            rows = rows[..., : x.shape[1]]
        else:
            rows = rows.flatten()[
                (torch.arange(len(x), device=x.device) + self.share * len(x)) % rows.numel()
            ]
        return x + F.embedding(rows, self.weight)


def make_norm(config: ModelConfig) -> Norm:
    """Return a norm of the stream: RMSNorm in a Llama, LayerNorm in a GPT."""
    kind = nn.RMSNorm if config.arch == "llama" else nn.LayerNorm
    return kind(config.width, eps=config.norm_eps)


def make_feed_forward(config: ModelConfig) -> FeedForward | MixtureOfExperts:
    """Return the feed-forward part of a block, or the experts in its place."""
    if not config.experts:
        return FeedForward(config)
    return MixtureOfExperts(config.width, config.ffn, config.experts, config.top_k, config.capacity)


class Block(nn.Module):
    """Attention and feed-forward, each on the normed stream and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.ffn_norm = make_norm(config)
        self.ffn = make_feed_forward(config)

    def forward(
        self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor, positions_BL: Tensor | None = None
    ) -> Tensor:
        """Return the residual stream after this block, (B, L, D)."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cos_LE, sin_LE, positions_BL)
        return x_BLD + self.ffn(self.ffn_norm(x_BLD))


class Transformer(nn.Module):
    """Tokens (B, L) to logits (B, L, V), or a stretch of the layers between them.

    A stretch that does not begin with layer 0 takes the stream (B, L, D) of the one before it, one that does not end
    with the last layer returns it. Parameters have the same names in a stretch as in the whole. With a seed they are
    drawn from it; without one they have no memory yet, so that ranks may first take their parts of them.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int | None,
        dtype: torch.dtype = torch.float32,
        layers: range | None = None,
    ) -> None:
        super().__init__()
        held = range(config.layers) if layers is None else layers
        self.config = config
        self.first, self.last = held.start == 0, held.stop == config.layers
        self._whole_blocks_again = False
        with torch.device("meta"):
            if self.first or (self.last and config.tied_head):
                table = torch.empty(config.vocab_size, config.width)
                self.embedding = nn.Embedding.from_pretrained(table, freeze=False)  # which draws nothing
            if self.first and config.arch == "gpt":
                self.positions = Positions(config)
            self.blocks = nn.ModuleDict({str(layer): Block(config) for layer in held})
            if self.last:
                self.norm = make_norm(config)
                self.head = nn.Linear(config.width, config.vocab_size, bias=False)
                if config.tied_head:
                    self.head.weight = self.embedding.weight
        self.to(dtype)
        self.cos_LE: Tensor
        self.sin_LE: Tensor
        self.rows_L: Tensor
        self.register_buffer("rows_L", torch.arange(config.seq_len), persistent=False)
        cos_LE, sin_LE = rotary_table(config, dtype, self.rows_L)
        self.register_buffer("cos_LE", cos_LE, persistent=False)
        self.register_buffer("sin_LE", sin_LE, persistent=False)
        if seed is not None:
            give_memory(self, self.cos_LE.device)
            for name, weight in self.named_parameters():
                draw(weight, name, seed, weight.shape, [0] * weight.ndim)

    def forward(self, x: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """Return the logits of the next token at every position, or the stream after this stretch.

        With the positions (B, L) of the whole sequences' tokens in their documents, a token sees its own one only.
        """
        angles, own_BL = (self.cos_LE, self.sin_LE), None
        if positions_BL is not None:
            own_BL = positions_BL[:, self.rows_L[: positions_BL.shape[1]]]
            if self.config.arch == "llama":
                angles_BLE = rotary_table(self.config, self.cos_LE.dtype, own_BL)
                angles = angles_BLE[0].unsqueeze(1), angles_BLE[1].unsqueeze(1)  # the same for all heads
        if self.first:
            x = self.embedding(x)
            if hasattr(self, "positions"):
                x = self.positions(x, self.rows_L if own_BL is None else own_BL)
        for block in self.blocks.values():
            if self._whole_blocks_again and torch.is_grad_enabled():
                x = checkpoint(block, x, *angles, positions_BL, use_reentrant=False)
            else:
                x = block(x, *angles, positions_BL)
        return self.head(self.norm(x)) if self.last else x

    def recompute(self, what: Recompute) -> None:
        """Compute nothing again in the backward pass, or attention between q, k, v and wo, or whole blocks."""
        self._whole_blocks_again = what == "full"
        for block in self.blocks.values():
            block.attention.recompute = what == "selective"

    def see(self, positions_L: Tensor) -> None:
        """Take the tokens of a sequence as standing at these positions from now on, instead of at 0, 1, 2, ..."""
        self.rows_L = positions_L
        self.cos_LE, self.sin_LE = self.cos_LE[positions_L], self.sin_LE[positions_L]


def loss(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats a token, a scalar."""
    return F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten())
