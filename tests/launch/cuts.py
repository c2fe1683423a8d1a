"""Ways to cut a matrix into boxes for some ranks; and, run by mpiexec, every way saved or every way read back.

`cuts save DIR` saves under all of them, `cuts load DIR` reads all that is there under each and prints, as a JSON
list, what did not come back bit by bit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from mpi4py import MPI

from launch import checkpoint

SHAPE = (7, 10)
Box = tuple[tuple[int, int], tuple[int, int]]
"""Offset and shape."""
NOTHING: Box = ((7, 0), (0, 10))
RANKS_PER_FILE = (None, 1, 2)


def grid(rows: list[int], columns: list[int]) -> Iterator[list[Box]]:
    """Yield one box a rank, row by row, between these lines."""
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield [((top, left), (bottom - top, right - left))]


def dealt(boxes: list[Box], ranks: int) -> list[list[Box]]:
    """Deal boxes out to the ranks in turn."""
    return [boxes[rank::ranks] for rank in range(ranks)]


PINWHEEL = [((0, 0), (2, 6)), ((0, 6), (5, 4)), ((5, 2), (2, 8)), ((2, 0), (5, 2)), ((2, 2), (3, 4))]
CELLS = [((row, column), (1, 2)) for row in range(7) for column in range(0, 10, 2)]
Cut = Callable[[int], list[list[Box]]]
ONE_EACH: dict[str, Cut] = {
    "rows": lambda n: list(grid([7 * i // n for i in range(n + 1)], [0, 10])),
    "columns": lambda n: list(grid([0, 7], [10 * i // n for i in range(n + 1)])),
    "blocks": lambda n: list(grid([0, 5, 7] if n == 4 else [0, 7], [0, 3, 10] if n > 1 else [0, 10])),
    "uneven": lambda n: list(grid([0, *[6] * (n - 1), 7], [0, 10])),  # the ranks in the middle have no row
    "one_has_all": lambda n: [*([] for _ in range(n - 1)), [((0, 0), SHAPE)]],
}
SAVED = ONE_EACH | {"pinwheel": lambda n: dealt(PINWHEEL, n), "cells": lambda n: dealt(CELLS, n)}
LOADED = ONE_EACH | {"all_have_all": lambda n: [[((0, 0), SHAPE)]] * n}


def arrays() -> dict[str, np.ndarray]:
    """Return what is saved: the matrix that is cut, and arrays that one rank saves whole."""
    bits = np.random.default_rng(7)
    return {
        "matrix": bits.integers(0, 2**32, SHAPE, np.uint32).view(np.float32),
        "scalar": np.array(-0.0),
        "empty": np.empty((0, 3), np.int16),
    }


def save(comm: MPI.Intracomm, directory: Path) -> None:
    """Save under every cut, with files for all ranks, for each and for two."""
    made = arrays()
    for name, cut in SAVED.items():
        pieces = [
            checkpoint.Piece("matrix", made["matrix"][r : r + m, c : c + n], SHAPE, (r, c))
            for (r, c), (m, n) in cut(comm.size)[comm.rank]
        ]
        if comm.rank == comm.size - 1:
            pieces += [checkpoint.whole(each, made[each]) for each in ("scalar", "empty")]
        for ranks_per_file in RANKS_PER_FILE:
            place = directory / f"{name}-by_{comm.size}-{ranks_per_file}"
            checkpoint.save(comm, place, 1, pieces, {"cut": name}, ranks_per_file=ranks_per_file)


def not_alike(comm: MPI.Intracomm, place: Path, cut: Cut) -> list[str]:
    """Return the names of arrays of which this rank's part under a cut did not come back bit by bit."""
    offset, shape = (cut(comm.size)[comm.rank] or [NOTHING])[0]
    there = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
    wanted = {
        name: checkpoint.Wanted(array.shape, (0,) * array.ndim, array.shape, array.dtype)
        for name, array in arrays().items()
    }
    wanted["matrix"] = checkpoint.Wanted(SHAPE, offset, shape, np.dtype(np.float32))
    parts = arrays() | {"matrix": arrays()["matrix"][there]}
    held = checkpoint.load(comm, place, wanted).arrays
    return [
        name
        for name, part in parts.items()
        if (held[name].shape, held[name].dtype, held[name].tobytes())
        != (part.shape, part.dtype, part.tobytes())
    ]


def main() -> None:
    """Run as one rank."""
    comm, directory = MPI.COMM_WORLD, Path(sys.argv[2])
    if sys.argv[1] == "save":
        save(comm, directory)
        return
    found = [
        f"{place.name} read by {name}: {wrong}, rank {rank}"
        for place in sorted(directory.iterdir())
        for name, cut in LOADED.items()
        for rank, wrong in enumerate(comm.allgather(not_alike(comm, place, cut)))
        if wrong
    ]
    if comm.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
