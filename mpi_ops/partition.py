"""RowPartition: which rank owns which rows of a matrix that is spread over ranks in contiguous stretches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpi_ops.errors import LayoutError

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowPartition:
    """Rank r owns the rows from `starts[r]` up to `starts[r + 1]`; every rank owns at least one.

    Raises:
        LayoutError: there are more ranks than rows, or the starts do not ascend.
    """

    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.world_size > self.n_rows:
            raise LayoutError(
                f"{self.world_size} ranks cannot share {self.n_rows} rows: each takes at least one"
            )
        if self.starts[0] != 0 or any(a >= b for a, b in zip(self.starts, self.starts[1:], strict=False)):
            raise LayoutError(f"row starts {self.starts} do not ascend from 0")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.starts) - 1

    @property
    def n_rows(self) -> int:
        """Rows of all ranks."""
        return self.starts[-1]

    def rows(self, rank: int) -> range:
        """Return the rows of `rank`."""
        return range(self.starts[rank], self.starts[rank + 1])

    def owner(self, rows: ArrayLike) -> Ids:
        """Return the rank that owns each of `rows`."""
        return np.searchsorted(np.asarray(self.starts), rows, side="right") - 1


def even(n_rows: int, ranks: int) -> RowPartition:
    """Return stretches of equal length. Raises LayoutError for more ranks than rows."""
    return RowPartition(tuple(n_rows * rank // ranks for rank in range(ranks + 1)))


def balanced(weights: ArrayLike, bin_starts: ArrayLike, ranks: int) -> RowPartition:
    """Return stretches of about equal weight, cut at the borders of bins.

    `weights` (bins,) is the weight of the rows of each bin, such as their entries; `bin_starts` (bins + 1,) are the
    rows at which bins begin, and at last the number of rows.

    Raises:
        LayoutError: there are more ranks than rows.
    """
    borders = np.asarray(bin_starts, np.int64)
    n_rows = int(borders[-1])
    before = np.concatenate([[0.0], np.cumsum(np.asarray(weights, np.float64))])
    starts = [0]
    for rank in range(1, ranks):
        wanted = before[-1] * rank / ranks
        at = int(np.searchsorted(before, wanted))
        nearer = at - 1 if at and wanted - before[at - 1] < before[at] - wanted else at
        starts.append(min(max(int(borders[nearer]), starts[-1] + 1), n_rows - ranks + rank))
    return RowPartition((*starts, n_rows))
