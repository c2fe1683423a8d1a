"""What a bootstrap draws: single points, whole runs, or blocks of neighbours, where neighbours resemble each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import DataError
from analysis.table import Observations

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resampling:
    """How points are drawn: each by itself, all of a run together, or `block` points in a row."""

    by: str = "point"
    block: int = 1

    def __post_init__(self) -> None:
        if self.by not in ("point", "run", "block") or self.block < 1:
            raise DataError(f"resampling '{self}': there is point, run and block:SIZE, of at least one point")

    def __str__(self) -> str:
        return f"block:{self.block}" if self.by == "block" else self.by


def parse_resampling(text: str) -> Resampling:
    """Return what `point`, `run` or `block:SIZE` means. Raises DataError for anything else."""
    by, _, size = text.partition(":")
    if (by == "block") != size.isdigit():
        raise DataError(f"resampling '{text}': there is point, run and block:SIZE")
    return Resampling(by, int(size or 1))


def weights_of(
    observations: Observations, resampling: Resampling, numbers: Iterable[int], seed: int
) -> Floats:
    """Return how often each point is drawn in the resamples of these numbers, (B, n); that of i follows from (seed, i).

    Raises:
        DataError: runs are to be drawn and the observations do not say which points belong to one.
    """
    clusters = _clusters(observations, resampling)
    size = int(clusters.max()) + 1
    rows = [np.random.default_rng([seed, i]).multinomial(size, np.full(size, 1 / size)) for i in numbers]
    return np.array(rows, dtype=float).reshape(len(rows), size)[:, clusters]


def _clusters(observations: Observations, resampling: Resampling) -> NDArray[np.intp]:
    """Return the number of what each point is drawn with, (n,)."""
    n = len(observations)
    if resampling.by == "run":
        if not observations.runs:
            raise DataError(
                f"{observations.source}: no column says which run a point belongs to (run=column)"
            )
        return np.asarray(np.unique(observations.runs, return_inverse=True)[1])
    return np.arange(n) // resampling.block
