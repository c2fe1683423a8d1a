"""Strong and weak scaling from times at several numbers of devices, and the laws that foretell the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.compare import aicc
from analysis.errors import AnalysisError, DataError
from analysis.fitting import fit
from analysis.result import FitResult
from analysis.table import Observations

Floats = NDArray[np.float64]
MIN_SIZES = 2


@dataclass(frozen=True, slots=True)
class ScalingRow:
    """One number of devices, against the smallest measured."""

    p: float
    time: float
    """Median where there are several."""
    speedup: float
    efficiency: float
    serial_fraction: float
    """Karp and Flatt's e = (1/S - 1/p) / (1 - 1/p): serial work if constant, overhead if it grows. NaN at p0."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What was measured, the laws fitted to it with their AICc, and why others were not."""

    weak: bool
    rows: list[ScalingRow]
    fits: list[tuple[FitResult, float]]
    problems: list[str]

    @property
    def remarks(self) -> list[str]:
        """Return what a reader must know: the baseline, and what was held fixed."""
        kept = "work a device" if self.weak else "the work"
        first = self.rows[0].p
        hidden = "; what one device or node would do better is hidden" if first > 1 else ""
        return [f"{kept} is taken as fixed; the baseline is p = {first:g}{hidden}", *self.problems]


def scaling(
    observations: Observations, *, weak: bool = False, bootstrap: int = 1000, seed: int = 0
) -> Scaling:
    """Return efficiencies of times t over devices p, and the fits of Amdahl's (or Gustafson's) law and the USL.

    Raises:
        DataError: fewer than two numbers of devices were measured.
    """
    p, t = observations.columns("p")["p"], observations.y
    sizes = np.unique(p)
    if len(sizes) < MIN_SIZES:
        raise DataError(
            f"{observations.source}: {len(sizes)} number of devices; efficiency needs {MIN_SIZES}"
        )
    times = np.array([np.median(t[p == size]) for size in sizes])
    fits, problems = [], []
    throughput = p / t if weak else 1 / t
    for law, y in (("gustafson", throughput) if weak else ("amdahl", t), ("usl", throughput)):
        outcome = "t" if law == "amdahl" else "X"
        points = Observations({"p": p}, y, observations.labels, observations.source, outcome)
        try:
            found = fit(law, points, bootstrap=bootstrap, seed=seed)
            fits.append((found, aicc(found)))
        except AnalysisError as error:
            problems.append(f"no {law}: {error}")
    return Scaling(weak, _rows(sizes, times, weak), fits, problems)


def _rows(p: Floats, t: Floats, weak: bool) -> list[ScalingRow]:
    ratio = p / p[0]
    speedup = ratio * t[0] / t if weak else t[0] / t
    with np.errstate(divide="ignore", invalid="ignore"):
        serial = np.where(ratio > 1, (1 / speedup - 1 / ratio) / (1 - 1 / ratio), np.nan)
    columns = (p, t, speedup, speedup / ratio, serial)
    return [ScalingRow(*map(float, row)) for row in zip(*columns, strict=True)]
