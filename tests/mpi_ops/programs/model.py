"""What the programs train, a small language model, and how, where nothing has to be said about ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH, LENGTH, BLOCKS, BATCH, STEPS = 32, 16, 8, 4, 8, 4


class Block(nn.Module):
    """A feed-forward on the normed stream, added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.down = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + self.down(F.gelu(self.up(self.norm(x_BLD))))


class Model(nn.Module):
    """Tokens (B, L) to logits (B, L, V); or a stretch of its blocks, as a pipeline's stage has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleDict({str(i): Block() for i in range(BLOCKS)})
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.skipped: str | None = None
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        for name, block in self.blocks.items():
            if name != self.skipped:
                x = block(x)
        return x if self.head is None else self.head(self.norm(x))


def stage(number: int, stages: int) -> Model:
    """Return the model without what other stages of a pipeline hold."""
    model, share = Model(), BLOCKS // stages
    for i in set(range(BLOCKS)) - set(range(number * share, (number + 1) * share)):
        del model.blocks[str(i)]
    if number > 0:
        model.embedding = None
    if number < stages - 1:
        model.norm = model.head = None
    return model


def batch(step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    """Return this rank's share of a step's tokens and their successors, both (B, L); each token tells the next."""
    generator = torch.Generator().manual_seed(step)
    tokens_BL = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator).chunk(ranks)[rank]
    return tokens_BL, (5 * tokens_BL + 3) % VOCABULARY


def loss(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats a token."""
    wide_BLV = logits_BLV.float() if logits_BLV.dtype is torch.bfloat16 else logits_BLV
    return F.cross_entropy(wide_BLV.flatten(0, 1), targets_BL.flatten())


def adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def train(model: nn.Module | None = None, rank: int = 0, ranks: int = 1) -> list[float]:
    """Return the losses of a rank's share of the batches; the default is the plain model on all of them."""
    model = model or Model()
    optimizer = adamw(model.parameters())
    return [advance(model, optimizer, *batch(step, rank, ranks)) for step in range(STEPS)]


def advance(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens_BL: Tensor, targets_BL: Tensor
) -> float:
    """Do one step and return the loss before it."""
    value = loss(model(tokens_BL), targets_BL)
    value.backward()
    optimizer.step()
    optimizer.zero_grad()
    return value.item()
