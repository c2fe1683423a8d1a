"""Save checkpoint after checkpoint into the directory named, and say each step that was committed, until killed.

With `--in-the-background` a Saver does it, on any number of ranks; each has rows of every array. With
`--beside-work` as well, and the ranks go on to reduce numbers of their own while it saves.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

from launch import checkpoint


def state(step: int) -> dict[str, np.ndarray]:
    """Return arrays that tell the step they belong to; some MB, so that a kill often meets a half-written file."""
    return {f"a{i}": np.full(100_000, step * 10 + i, np.float64) for i in range(3)}


def pieces(step: int) -> list[checkpoint.Piece]:
    """Return this rank's share of the state."""
    comm = MPI.COMM_WORLD
    first, last = (100_000 * rank // comm.size for rank in (comm.rank, comm.rank + 1))
    return [
        checkpoint.Piece(name, array[first:last], array.shape, (first,))
        for name, array in state(step).items()
    ]


def main() -> None:
    """Run until killed."""
    directory, comm = Path(sys.argv[1]), MPI.COMM_WORLD
    saver = checkpoint.Saver(comm.Dup(), directory)
    first = comm.bcast((checkpoint.steps(directory) or [0])[-1] + 1)
    for step in itertools.count(first):
        if "--beside-work" in sys.argv:
            saver.start(step, pieces(step), {"step": step})
            if step > first and comm.rank == 0:
                print(step - 1, flush=True)
            for _ in range(20):
                comm.allreduce(step)
            continue
        if "--in-the-background" in sys.argv:
            saver.start(step, pieces(step), {"step": step})
            saver.wait()
        else:
            checkpoint.save(comm, directory, step, pieces(step), {"step": step})
        if comm.rank == 0:
            print(step, flush=True)


if __name__ == "__main__":
    main()
