"""The halo of a matrix spread by rows: the rows of other ranks that this rank's columns name.

Who needs what is agreed once, in a `HaloPlan`; after that an exchange is one message to each neighbour, over a
communicator that knows the neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor

from mpi_ops.counters import tally
from mpi_ops.errors import TensorError
from mpi_ops.partition import RowPartition

WIRE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What may travel; with 16 bits a rank sees others' rows rounded, so the result depends on who owns what."""
MESSAGE_BYTES = 2**31 - 1
"""Largest message to one neighbour: MPI libraries count bytes in 32 bits somewhere."""
Rows = NDArray[np.int64]


class HaloPlan:
    """Which rows travel where. Every rank makes one together and calls `exchange` alike.

    Cost: an all-to-all of one number a pair and one of the row numbers; a communicator.
    """

    def __init__(
        self, comm: MPI.Intracomm, partition: RowPartition, halo_rows: Rows, wire: str = "fp32"
    ) -> None:
        """Plan for `halo_rows`, ascending, all of other ranks."""
        first = partition.rows(comm.rank).start
        receive = np.bincount(partition.owner(halo_rows), minlength=comm.size)
        send = np.empty_like(receive)
        comm.Alltoall(receive, send)
        asked = np.empty(int(send.sum()), np.int64)
        comm.Alltoallv([halo_rows, (receive, _starts(receive))], [asked, (send, _starts(send))])
        sources, targets = np.flatnonzero(receive), np.flatnonzero(send)
        self.halo_rows = halo_rows
        self.dtype = WIRE[wire]
        self._send_rows = torch.from_numpy(asked - first)
        self._receive, self._send = receive[sources], send[targets]
        self._comm = comm.Create_dist_graph_adjacent(sources.tolist(), targets.tolist())
        self._largest = comm.allreduce(int(max([*receive, *send, 0])), MPI.MAX)
        self._tally = tally("halo", "rows")
        self._idle: list[Room] = []
        """Where rows are packed for an exchange, of exchanges that have ended."""

    @property
    def neighbours(self) -> int:
        """How many ranks this one sends to."""
        return len(self._send)

    @property
    def widest(self) -> int:
        """Most columns that an exchange may have on any rank."""
        return MESSAGE_BYTES // max(1, int(self._largest) * self.dtype.itemsize)

    def sent_bytes(self, columns: int) -> int:
        """Return what an exchange of so many columns sends from this rank: rows x columns x bytes of a number."""
        return len(self._send_rows) * columns * self.dtype.itemsize

    def start(self, mine: Tensor, halo: Tensor) -> Halo:
        """Begin to fill `halo` (halo rows, columns) from others' rows of `mine` (own rows, columns), both fp32.

        Raises:
            TensorError: a tensor that is not contiguous, or more columns than `widest`.

        Cost: a message to and from each neighbour, `sent_bytes(columns)` in all.
        """
        columns = mine.shape[1]
        if columns > self.widest:
            raise TensorError(f"{columns} columns a halo exchange: messages below 2 GiB hold {self.widest}")
        if not halo.is_contiguous():
            raise TensorError("the halo is not contiguous: MPI would fill the memory between its rows")
        room = self._idle.pop() if self._idle else Room()
        rows = room.of(len(self._send_rows), columns)
        packed = torch.index_select(mine, 0, self._send_rows, out=rows).to(self.dtype)
        direct = self.dtype == torch.float32
        received = halo if direct else torch.empty(halo.shape, dtype=self.dtype)
        row = MPI.BYTE.Create_contiguous(columns * self.dtype.itemsize).Commit()
        request = MPI.REQUEST_NULL
        if self._largest:  # else nobody needs a row, as on one rank, and MPI would take long to find that out
            request = self._comm.Ineighbor_alltoallv(
                [_bytes(packed), (self._send, _starts(self._send)), row],
                [_bytes(received), (self._receive, _starts(self._receive)), row],
            )
        self._tally.calls += 1
        self._tally.sent_bytes += self.sent_bytes(columns)

        def finish() -> None:
            row.Free()
            self._idle.append(room)
            if not direct:
                halo.copy_(received)

        return Halo(request, (packed, received), finish)

    def exchange(self, mine: Tensor, halo: Tensor) -> None:
        """Fill `halo` and return; as `start`, and the same cost."""
        self.start(mine, halo).wait()

    def free(self) -> None:
        """Free the communicator. Every rank calls it."""
        self._comm.Free()


class Room:
    """Memory that is used again and again: a fresh piece costs a fault a page."""

    def __init__(self) -> None:
        self._numbers = torch.empty(0)

    def of(self, rows: int, columns: int) -> Tensor:
        """Return room for (rows, columns) in fp32, with what was left there."""
        if len(self._numbers) < rows * columns:
            self._numbers = torch.empty(rows * columns)
        return self._numbers[: rows * columns].view(rows, columns)


class Halo:
    """An exchange under way; MPI moves it only while someone asks."""

    def __init__(self, request: MPI.Request, held: tuple[Tensor, ...], finish: Callable[[], None]) -> None:
        self._request, self._held, self._finish = request, held, finish

    def poll(self) -> None:
        """Let MPI move it along."""
        self._request.Test()

    def wait(self) -> None:
        """Return once the halo is there."""
        self._request.Wait()
        self._finish()
        self._held = ()


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else counts


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """Return the memory of a contiguous tensor; bf16 has no NumPy type of its own."""
    return tensor.view(-1).view(torch.uint8).numpy()
