"""Rows that move to other ranks, each to one that is named for it, and back."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]
Numbers = TypeVar("Numbers", bound=np.generic)


class RowExchange:
    """Row i of this rank goes to rank `to[i]`; there it stands after the rows of earlier ranks, in this rank's order.

    Cost: an all-to-all of one number a pair.
    """

    def __init__(self, comm: MPI.Intracomm, to: ArrayLike) -> None:
        """Agree on how many rows travel between each two ranks. Every rank calls it."""
        wanted = np.asarray(to, np.int64)
        self._comm = comm
        self.order = np.argsort(wanted, kind="stable")
        """The own rows as they are sent."""
        self.sent = np.bincount(wanted, minlength=comm.size)
        """Rows to each rank."""
        self.received = np.empty_like(self.sent)
        """Rows from each rank."""
        comm.Alltoall(self.sent, self.received)

    def there(self, rows: NDArray[Numbers]) -> NDArray[Numbers]:
        """Return the rows that arrive, (received, ...), of those that leave, (own rows, ...).

        Cost: an all-to-all of the rows.
        """
        arrived = np.empty((int(self.received.sum()), *rows.shape[1:]), rows.dtype)
        self._move(np.ascontiguousarray(rows[self.order]), self.sent, arrived, self.received)
        return arrived

    def back(self, rows: NDArray[Numbers]) -> NDArray[Numbers]:
        """Return what has become of the own rows, (own rows, ...), given those that had arrived. Cost: as `there`."""
        returned = np.empty((len(self.order), *rows.shape[1:]), rows.dtype)
        self._move(np.ascontiguousarray(rows), self.received, returned, self.sent)
        placed = np.empty_like(returned)
        placed[self.order] = returned
        return placed

    def entries_there(self, indptr: Counts, entries: NDArray[Numbers]) -> NDArray[Numbers]:
        """Return the entries of the rows that arrive, row after row, of those in compressed form that leave.

        Cost: an all-to-all of one number a row and one of the entries.
        """
        counts = np.diff(indptr)
        arriving = self.there(counts)
        sent, received = (
            _sums(c, of) for c, of in ((counts[self.order], self.sent), (arriving, self.received))
        )
        arrived = np.empty(int(received.sum()), entries.dtype)
        leaving = entries[entries_of(indptr, self.order)]
        self._move(leaving, sent, arrived, received)
        return arrived

    def _move(
        self, leaving: NDArray[Numbers], sent: Counts, arriving: NDArray[Numbers], received: Counts
    ) -> None:
        row_bytes = leaving.itemsize * int(np.prod(leaving.shape[1:]))
        # Counts of rows fit where those of bytes may not.
        row = MPI.BYTE.Create_contiguous(row_bytes).Commit()
        self._comm.Alltoallv(
            [leaving, (sent, _starts(sent)), row], [arriving, (received, _starts(received)), row]
        )
        row.Free()


def entries_of(indptr: Counts, rows: Counts) -> Counts:
    """Return the numbers of the entries of `rows`, in the order in which they are named."""
    counts = np.diff(indptr)[rows]
    first = indptr[:-1][rows]
    found = np.repeat(first - _starts(counts), counts)
    found += np.arange(len(found))
    return found


def _starts(counts: Counts) -> Counts:
    return np.cumsum(counts) - counts


def _sums(values: Counts, lengths: Counts) -> Counts:
    """Return the sum of each stretch of `values`, of such lengths."""
    before = np.concatenate([[0], np.cumsum(values)])
    ends = np.cumsum(lengths)
    sums: Counts = before[ends] - before[ends - lengths]
    return sums
