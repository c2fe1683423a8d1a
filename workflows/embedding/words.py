"""Node ids that are words: numbered in the order of their hashes, which no rank count and no file order changes."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from launch.agree import everywhere
from workflows.embedding.errors import GraphError
from workflows.embedding.text import Edges

Hashes = NDArray[np.uint64]


def numbered(comm: MPI.Intracomm, parts: list[Edges]) -> tuple[list[Edges], int, dict[int, bytes]]:
    """Return the edges with numbers 0 ... n - 1 in place of hashes, n, and some of the words by number on each rank.

    Raises, on every rank the same:
        GraphError: two words have one hash.

    Cost: an all-to-all of the words that each rank read, each once, and one of their numbers.
    """
    names = {number: word for edges in parts for number, word in (edges.names or {}).items()}
    mine = np.array(sorted(names), np.uint64)
    owner = ((mine >> np.uint64(32)) * np.uint64(comm.size) >> np.uint64(32)).astype(np.int64)
    asked = [mine[owner == rank] for rank in range(comm.size)]
    told = comm.alltoall([[(int(number), names[int(number)]) for number in each] for each in asked])
    kept = everywhere(comm, lambda: _merged([pair for pairs in told for pair in pairs]))
    first = comm.exscan(len(kept)) or 0
    place = {number: first + i for i, number in enumerate(sorted(kept))}
    answers = comm.alltoall([np.array([place[n] for n, _ in pairs], np.int64) for pairs in told])
    number = np.concatenate(answers)  # owners ascend with hashes, so this is in the order of `mine`
    found = [
        Edges(number[np.searchsorted(mine, e.source)], number[np.searchsorted(mine, e.target)], e.weight)
        for e in parts
    ]
    return found, comm.allreduce(len(kept)), {place[n]: word for n, word in kept.items()}


def _merged(pairs: list[tuple[int, bytes]]) -> dict[int, bytes]:
    kept: dict[int, bytes] = {}
    for number, word in pairs:
        if kept.setdefault(number, word) != word:
            raise GraphError(
                f"node ids {kept[number]!r} and {word!r} have one 64-bit hash; rename one of them"
            )
    return kept
