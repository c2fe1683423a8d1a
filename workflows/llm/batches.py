"""The batches of a run as a pure function of seed and step, whatever the layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.errors import ConfigError
from workflows.llm.config import LlmConfig

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """Documents end to end: their tokens, and the place of each one's first token."""

    tokens: NDArray[Any]
    starts: IntArray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(slots=True)
class Batches:
    """The batches of one run as data-parallel rank `rank` of `ranks` sees them; all `ranks` share one global batch.

    Sequence i of step s is window `order[(s * global_batch + i) mod windows]` of the training text, the order
    being drawn anew for every pass over it from (seed, pass). Nothing has to be saved to go on at a step.

    Raises:
        ConfigError: a part of the text is shorter than a sequence.
    """

    config: LlmConfig
    train: Packed
    validation: Packed
    rank: int = 0
    ranks: int = 1
    _epoch: int = -1
    _order: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        needed = self.config.model.seq_len + 1
        for purpose, tokens in (("training", self.train), ("validation", self.validation)):
            if len(tokens) < needed:
                raise ConfigError(
                    f"data.source: {len(tokens)} tokens for {purpose}; one sequence needs {needed}, "
                    "model.seq_len and its successor"
                )

    @property
    def windows(self) -> int:
        """Sequences in one pass over the training text."""
        return (len(self.train) - 1) // self.config.model.seq_len

    @property
    def passes(self) -> float:
        """How often the run goes over the training text; above 1 it repeats itself."""
        return self.config.steps * self.config.train.global_batch / self.windows

    def batch(self, step: int) -> tuple[IntArray, ...]:
        """Return this rank's share of step `step`: tokens and their successors, each (B / ranks, L).

        With `data.mask_documents` a third array says how far into its document each token is; the part of a
        document that lies before the sequence does not count.
        """
        share = self.config.train.global_batch // self.ranks
        first = step * self.config.train.global_batch + self.rank * share
        return self._cut(self.train, np.array([self._window(first + i) for i in range(share)]))

    @property
    def validation_rounds(self) -> int:
        """Batches of validation of the rank that has the most."""
        held = (len(self.validation) - 1) // self.config.model.seq_len
        most = -(-min(self.config.train.evaluation_sequences, held) // self.ranks)
        return -(-most // self.config.train.global_batch)

    def validation_batches(self) -> Iterator[tuple[IntArray, ...]]:
        """Yield this rank's share of the fixed validation sequences, in batches of the training size.

        They lie at equal distances over the held-back text; a short one has fewer than were asked for.
        """
        held, share = (len(self.validation) - 1) // self.config.model.seq_len, self.config.train.global_batch
        n = min(self.config.train.evaluation_sequences, held)
        mine = (np.arange(n) * held // n)[self.rank :: self.ranks]
        for start in range(0, len(mine), share):
            yield self._cut(self.validation, mine[start : start + share])

    def _window(self, index: int) -> int:
        epoch, place = divmod(index, self.windows)
        if epoch != self._epoch:
            # Raw bits are the one random stream that numpy promises to keep from release to release.
            drawn = np.random.Philox(key=[self.config.data.seed, epoch]).random_raw(self.windows)
            self._epoch, self._order = epoch, np.argsort(drawn, kind="stable")
        return int(self._order[place])

    def _cut(self, text: Packed, windows: IntArray) -> tuple[IntArray, ...]:
        length = self.config.model.seq_len
        at = windows[:, None] * length + np.arange(length + 1)
        cut = text.tokens[at].astype(np.int64)
        if not self.config.data.mask_documents:
            return cut[:, :-1], cut[:, 1:]
        at = at[:, :-1]
        starts = text.starts[np.searchsorted(text.starts, at, side="right") - 1]
        return cut[:, :-1], cut[:, 1:], at - np.maximum(starts, at[:, :1])
