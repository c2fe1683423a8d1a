"""The columns that the entries of this rank's rows name, and what other ranks say of them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor

from mpi_ops.errors import TensorError
from mpi_ops.halo import HaloPlan, Room
from mpi_ops.partition import RowPartition

CHUNK = 1 << 20
"""Entries whose columns are renumbered at once."""
Integers = NDArray[np.int32] | NDArray[np.int64]
Numbers = TypeVar("Numbers", bound=np.generic)


class Columns:
    """Every entry's column as a place among this rank's rows and its halo's. Every rank makes one together.

    Cost: that of a HaloPlan.
    """

    def __init__(
        self, comm: MPI.Intracomm, partition: RowPartition, columns: Integers, wire: str = "fp32"
    ) -> None:
        """Take the columns of this rank's entries, (entries,), as numbers of rows."""
        mine = partition.rows(comm.rank)
        halo, self.places = numbered(columns, mine, partition.n_rows)
        """Of each entry: below `n_rows` an own row, from there on a row of the halo."""
        self.plan = HaloPlan(comm, partition, halo, wire)
        self.n_rows, self.n_halo = len(mine), len(halo)
        self._room = Room()

    def operand(self, columns: int) -> Tensor:
        """Return where a product has its operand, (own rows + halo rows, columns) in fp32: the same place each time."""
        return self._room.of(self.n_rows + self.n_halo, columns)

    def known(self, own: NDArray[Numbers]) -> NDArray[Numbers]:
        """Return a number for each place, (own rows + halo rows,), given those of the own rows.

        Raises:
            TensorError: other numbers than fp32, while 16 bits travel.

        Cost: a halo exchange of a column for each 4 bytes of a number.
        """
        words = torch.from_numpy(np.ascontiguousarray(own)).view(torch.float32).view(self.n_rows, -1)
        if own.dtype != np.float32 and self.plan.dtype != torch.float32:
            raise TensorError(f"{own.dtype} does not travel as {self.plan.dtype}")
        halo = torch.empty(self.n_halo, words.shape[1])
        self.plan.exchange(words, halo)  # bits of any kind: fp32 is copied, never computed with
        told: NDArray[Any] = halo.numpy().view(own.dtype)[:, 0]
        return np.concatenate([own, told])

    def free(self) -> None:
        """Free the plan's communicator. Every rank calls it."""
        self.plan.free()


def numbered(columns: Integers, mine: range, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the columns of other ranks, ascending, each once; and each column's row in (own rows, halo rows)."""
    if len(mine) == n_rows:
        return np.empty(0, np.int64), columns.astype(np.int32, copy=False)
    if n_rows <= len(columns):
        # A table of all rows is then no larger than what it gives, and six times as fast.
        place = np.zeros(n_rows, np.int32)
        place[columns] = 1
        place[mine.start : mine.stop] = 0
        halo = np.flatnonzero(place)
        place[halo] = np.arange(len(mine), len(mine) + len(halo))
        place[mine.start : mine.stop] = np.arange(len(mine))
        return halo, place[columns]
    halo = _outside(columns, mine)
    return halo, _renumbered(columns, mine, halo)


def _outside(columns: Integers, mine: range) -> NDArray[np.int64]:
    """Return the columns of other ranks, ascending, each once; a chunk at a time, for memory's sake."""
    found = []
    for at in range(0, len(columns), CHUNK):
        chunk = columns[at : at + CHUNK]
        found.append(np.unique(chunk[(chunk < mine.start) | (chunk >= mine.stop)]))
    return np.unique(np.concatenate(found)).astype(np.int64) if found else np.empty(0, np.int64)


def _renumbered(columns: Integers, mine: range, halo: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return each column's row in (own rows, halo rows)."""
    local = np.empty(len(columns), np.int32)
    for at in range(0, len(columns), CHUNK):
        chunk = columns[at : at + CHUNK]
        outside = (chunk < mine.start) | (chunk >= mine.stop)
        piece = chunk - mine.start
        piece[outside] = len(mine) + np.searchsorted(halo, chunk[outside])
        local[at : at + CHUNK] = piece
    return local
