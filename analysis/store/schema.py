"""The layout of a metrics file, `isoflop-metrics/1`.

```
/meta             attributes: schema, attempt, restore_step and what the writer adds (text, int, float)
/streams/<name>   rows (step, tokens, time, value); attributes unit, description
/dist/<name>      rows (step, min, median, max, slowest ranks, counts per log bin); attributes unit, low, high
/events           rows (time, step, kind, message)
/summary          one row, NaN where nothing was said
```
Times are seconds since the attempt began. Every object is created before the first row is written, since a
file in SWMR mode takes rows and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCHEMA = "isoflop-metrics/1"
ROW = np.dtype([("step", "<i8"), ("tokens", "<i8"), ("time", "<f8"), ("value", "<f8")])
EVENT = np.dtype([("time", "<f8"), ("step", "<i8"), ("kind", "S16"), ("message", "S232")])
SLOWEST = 4
"""How many of the slowest ranks a distribution row names."""


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A scalar that is written step by step."""

    name: str
    unit: str
    description: str


@dataclass(frozen=True, slots=True)
class DistSpec:
    """A value that every rank measures, kept as counts in `bins` log-spaced bins from `low` to `high`.

    What lies outside is counted in the first or the last bin, so no sample is lost.
    """

    name: str
    unit: str
    low: float = 1e-6
    high: float = 1e4
    bins: int = 64

    @property
    def edges(self) -> NDArray[np.float64]:
        """The `bins + 1` edges."""
        return np.geomspace(self.low, self.high, self.bins + 1)

    @property
    def row(self) -> np.dtype[np.void]:
        """The type of a row: extremes, median of the ranks' medians, and counts over all ranks since the row before."""
        return np.dtype(
            [
                ("step", "<i8"),
                ("min", "<f8"),
                ("median", "<f8"),
                ("max", "<f8"),
                ("slowest", "<i4", (SLOWEST,)),
                ("counts", "<i8", (self.bins,)),
            ]
        )

    def count(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return how many of `values` fall into each bin."""
        place = np.searchsorted(self.edges, values, side="right") - 1
        return np.bincount(np.clip(place, 0, self.bins - 1), minlength=self.bins)
