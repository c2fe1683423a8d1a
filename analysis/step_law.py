"""Peak learning rate and batch by size and tokens (Step Law, arXiv 2503.04715), published or fitted.

The loss is flat around the optimum: a law is judged by the loss it costs (`excess`), not by its exponents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import DataError

Floats = NDArray[np.float64]
NEAR_BEST = 0.0025
"""Relative loss above a cell's best up to which its runs are kept for a fit."""
RATIOS = (4.0, 1000.0)
"""Tokens a parameter that the published grid holds, about."""


@dataclass(frozen=True, slots=True)
class StepLaw:
    """lr = lr_factor N^lr_size D^lr_tokens, batch in tokens = batch_factor D^batch_tokens; N without embeddings."""

    lr_factor: float = 1.79
    lr_size: float = -0.713
    lr_tokens: float = 0.307
    batch_factor: float = 0.58
    batch_tokens: float = 0.571

    def optimum(self, N: Floats, D: Floats) -> tuple[Floats, Floats]:
        """Return the learning rate and the batch in tokens."""
        rate = self.lr_factor * N**self.lr_size * D**self.lr_tokens
        return rate, self.batch_factor * D**self.batch_tokens

    def sequences(self, N: float, D: float, seq_len: int, multiple: int = 1) -> int:
        """Return the batch in sequences, rounded to a multiple (of ranks times microbatch) and at least one of it."""
        _, tokens = self.optimum(np.asarray(N), np.asarray(D))
        return max(1, round(float(tokens) / seq_len / multiple)) * multiple

    def remark(self, N: float, D: float) -> str:
        """Return a sentence where tokens a parameter lie outside what the law was made from, else nothing."""
        ratio = D / N
        if RATIOS[0] <= ratio <= RATIOS[1]:
            return ""
        return f"{ratio:.3g} tokens a parameter; the published grid has {RATIOS[0]:g} to {RATIOS[1]:g}"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs over learning rate and batch, in cells of one size and one number of tokens; all arrays (runs,)."""

    N: Floats
    D: Floats
    rate: Floats
    batch: Floats
    """In tokens."""
    loss: Floats

    def __post_init__(self) -> None:
        for name in ("N", "D", "rate", "batch", "loss"):
            column = getattr(self, name)
            wrong = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
            if len(wrong):
                raise DataError(
                    f"sweep: run {wrong[0]}: {name} is {column[wrong[0]]}, a positive number is needed"
                )

    def cells(self) -> list[NDArray[np.intp]]:
        """Return the rows of each cell."""
        keys = np.stack([self.N, self.D], axis=1)
        _, cell = np.unique(keys, axis=0, return_inverse=True)
        return [np.flatnonzero(cell.ravel() == i) for i in range(int(cell.max()) + 1)]

    def near_best(self, threshold: float = NEAR_BEST) -> NDArray[np.intp]:
        """Return the rows whose loss is within `threshold` of the best of their cell: what the paper fits."""
        return np.concatenate(
            [rows[self.loss[rows] <= self.loss[rows].min() * (1 + threshold)] for rows in self.cells()]
        )

    def excess(self, law: StepLaw) -> Floats:
        """Return for each cell the loss of the run nearest to the law, in (ln lr, ln batch), over the best - 1."""
        found = []
        for rows in self.cells():
            rate, batch = law.optimum(self.N[rows[0]], self.D[rows[0]])
            away = np.log(self.rate[rows] / rate) ** 2 + np.log(self.batch[rows] / batch) ** 2
            found.append(self.loss[rows[away.argmin()]] / self.loss[rows].min() - 1)
        return np.array(found)

    def bowls(self, within: float = 0.02) -> Floats:
        """Return the smaller curvature of a quadratic of loss / best in (ln lr, ln batch) near each cell's best."""
        found = []
        for rows in self.cells():
            near = rows[self.loss[rows] <= self.loss[rows].min() * (1 + within)]
            u, v = np.log(self.rate[near]), np.log(self.batch[near])
            u, v = u - u.mean(), v - v.mean()
            terms = np.stack([np.ones_like(u), u, v, u * u / 2, u * v, v * v / 2], axis=1)
            c = np.linalg.lstsq(terms, self.loss[near] / self.loss[rows].min(), rcond=None)[0]
            found.append(float(np.linalg.eigvalsh([[c[3], c[4]], [c[4], c[5]]])[0]))
        return np.array(found)

    def fit(self, threshold: float = NEAR_BEST) -> StepLaw:
        """Return the law through the runs near their cell's best, by least squares of logarithms.

        Raises:
            DataError: the runs near the best have fewer than two sizes or two numbers of tokens.
        """
        keep = self.near_best(threshold)
        size, tokens = np.log(self.N[keep]), np.log(self.D[keep])
        terms = np.stack([np.ones_like(size), size, tokens], axis=1)
        if np.linalg.matrix_rank(terms - [0, *terms[:, 1:].mean(axis=0)]) < 3:
            raise DataError(
                f"sweep: {len(self.cells())} cells; two sizes and two numbers of tokens, not in one ratio, are needed"
            )
        rate = np.linalg.lstsq(terms, np.log(self.rate[keep]), rcond=None)[0]
        batch = np.linalg.lstsq(terms[:, [0, 2]], np.log(self.batch[keep]), rcond=None)[0]
        return StepLaw(
            float(np.exp(rate[0])), float(rate[1]), float(rate[2]), float(np.exp(batch[0])), float(batch[1])
        )
