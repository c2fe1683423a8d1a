"""A Llama-type decoder in plain torch: no parallelism in here, so that any can be laid over it.

Shape suffixes: B batch, L sequence, D width, F inner width, H query heads, K key heads, E head width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name for it)
from torch import Tensor, nn

from workflows.llm.config import ModelConfig


def rotary_table(config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position x frequency, each (L, E/2): frequency i is theta ** (-2 i / E)."""
    frequency_E = config.rope_theta ** (
        -torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width
    )
    angle_LE = torch.outer(torch.arange(config.seq_len, dtype=torch.float64), frequency_E)
    return angle_LE.cos().to(dtype), angle_LE.sin().to(dtype)


def rotate(x_BHLE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Return x with each pair (i, i + E/2) turned by its position's angle."""
    length = x_BHLE.shape[-2]
    cos, sin = cos_LE[:length], sin_LE[:length]
    first, second = x_BHLE.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_width = config.heads, config.key_heads, config.head_width
        self.wq = nn.Linear(config.width, self.heads * self.head_width, bias=False)
        self.wk = nn.Linear(config.width, self.key_heads * self.head_width, bias=False)
        self.wv = nn.Linear(config.width, self.key_heads * self.head_width, bias=False)
        self.wo = nn.Linear(self.heads * self.head_width, config.width, bias=False)

    def forward(self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
        """Return the attended values, (B, L, D)."""
        batch, length, _ = x_BLD.shape
        q_BHLE = self.wq(x_BLD).view(batch, length, self.heads, self.head_width).transpose(1, 2)
        k_BKLE = self.wk(x_BLD).view(batch, length, self.key_heads, self.head_width).transpose(1, 2)
        v_BKLE = self.wv(x_BLD).view(batch, length, self.key_heads, self.head_width).transpose(1, 2)
        attended_BHLE = F.scaled_dot_product_attention(
            rotate(q_BHLE, cos_LE, sin_LE),
            rotate(k_BKLE, cos_LE, sin_LE),
            v_BKLE,
            is_causal=True,
            enable_gqa=self.key_heads != self.heads,
        )
        return self.wo(attended_BHLE.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn, bias=False)
        self.up = nn.Linear(config.width, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return (B, L, D)."""
        return self.down(F.silu(self.gate(x_BLD)) * self.up(x_BLD))


class Block(nn.Module):
    """Attention and feed-forward, each on the normed stream and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
        """Return the residual stream after this block, (B, L, D)."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cos_LE, sin_LE)
        return x_BLD + self.ffn(self.ffn_norm(x_BLD))


class Transformer(nn.Module):
    """Tokens (B, L) to logits (B, L, V)."""

    def __init__(self, config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self.to(dtype)
        cos_LE, sin_LE = rotary_table(config, dtype)
        self.register_buffer("cos_LE", cos_LE, persistent=False)
        self.register_buffer("sin_LE", sin_LE, persistent=False)
        initialise(self, seed)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Return the logits of the next token at every position."""
        x_BLD = self.embedding(tokens_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, self.cos_LE, self.sin_LE)
        return self.head(self.norm(x_BLD))


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> None:
    """Set each weight from `seed` and its own name alone: the same on every rank, whatever part a rank holds.

    The matrices that write to the residual stream are 0, so that every block starts as the identity (after 200
    steps this takes 4 % off the loss and two thirds off its spread over seeds). All others are normal with
    deviation 1 / sqrt(columns). The last norm is 1 / sqrt(width): a token's logit for itself, which with a tied
    head is the square of its embedding, starts near 1, and the loss near ln V. The other norms are 1.
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(len(weight) ** -0.5 if name == "norm.weight" else 1.0)
        elif name.endswith(("wo.weight", "down.weight")):
            weight.zero_()
        else:
            own_seed = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8])
            generator = torch.Generator().manual_seed(own_seed)
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(drawn / math.sqrt(weight.shape[1]))


def loss(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats a token, a scalar."""
    return F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten())
