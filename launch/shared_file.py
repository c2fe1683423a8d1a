"""One data file of a checkpoint, written by the first of the ranks that share it with the bytes of them all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import index as whole_number
from pathlib import Path

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from launch.agree import wait_until
from launch.checkpoint_index import KINDS, new_file, sha256
from launch.errors import CheckpointError
from launch.pieces import Piece, Stored

CHUNK_BYTES = 1 << 24
"""Largest message between ranks that share a file, and all the memory that its writer needs for the others."""

Bytes = NDArray[np.uint8]


def describe(piece: Piece) -> tuple[Stored, Bytes]:
    """Return the index entry of a piece, but for its place, and its bytes: no copy where it lies as a file would."""
    array = piece.array
    if array.dtype.kind not in KINDS:
        raise CheckpointError(
            f"array '{piece.name}' is of type {array.dtype}; a checkpoint holds numbers only"
        )
    little = array.dtype.newbyteorder("<")
    raw = np.ascontiguousarray(array, dtype=little).reshape(-1).view(np.uint8)
    shape, offset = tuple(map(whole_number, piece.shape)), tuple(map(whole_number, piece.offset))
    return Stored(piece.name, little.str, shape, offset, array.shape, sha256(raw.data)), raw


@contextmanager
def ranks_of_a_file(comm: MPI.Intracomm, at_most: int | None) -> Iterator[MPI.Comm]:
    """Yield the communicator of the ranks of this node that share a file: all, or `at_most` so many neighbours.

    Cost: two splits of a communicator.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    group = node.Split(node.rank // (at_most or node.size), node.rank)
    try:
        yield group
    finally:
        group.Free()
        node.Free()


def write_together(group: MPI.Comm, path: Path, held: list[tuple[Stored, Bytes]]) -> list[Stored]:
    """Write the pieces of the group's ranks; return their entries on its first rank, and nothing on the others.

    Raises:
        OSError: on the first rank alone, after it has sent the others home.

    Cost: a gather of the entries; for each chunk of the others, one short message and the chunk.
    """
    everyones = group.gather([stored for stored, _ in held])
    if everyones is None:
        _send(group, [raw for _, raw in held])
        return []
    of_others = [(rank, each) for rank, of_rank in enumerate(everyones) if rank for each in of_rank]
    due = deque((rank, part) for rank, each in of_others for part in _chunks(each.n_bytes))
    try:
        with new_file(path) as file:
            for _, raw in held:
                file.write(raw.data)
            buffer = np.empty(CHUNK_BYTES, np.uint8)
            while due:
                rank, part = due[0]
                chunk = buffer[: part.stop - part.start]
                group.send(True, rank)
                group.Recv([chunk, MPI.BYTE], rank)
                due.popleft()
                file.write(chunk.data)
    finally:
        for rank in {rank for rank, _ in due}:  # after a failure, these still wait for their turn
            group.send(False, rank)
    return _placed(path.name, [stored for of_rank in everyones for stored in of_rank])


def _send(group: MPI.Comm, raws: list[Bytes]) -> None:
    """Send the bytes to the group's first rank, each chunk when it asks for it, until it says that it cannot go on."""
    for raw in raws:
        for part in _chunks(raw.nbytes):
            wait_until(lambda: group.iprobe(source=0))
            if not group.recv(source=0):
                return
            group.Send([raw[part], MPI.BYTE], 0)


def _chunks(n_bytes: int) -> Iterator[slice]:
    return (slice(at, min(at + CHUNK_BYTES, n_bytes)) for at in range(0, n_bytes, CHUNK_BYTES))


def _placed(file: str, stored: list[Stored]) -> list[Stored]:
    placed, start = [], 0
    for each in stored:
        placed.append(replace(each, file=file, start=start))
        start += each.n_bytes
    return placed
