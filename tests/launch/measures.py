"""A rank that records known numbers: `FILE STEPS EVERY [RANK STEP]`, the last two saying who is killed when."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from mpi4py import MPI

from analysis.store.schema import StreamSpec
from launch.metrics import Metrics

STREAMS = (StreamSpec("loss", "nat", "falls"), StreamSpec("lr", "1", "rises"))


def step_time_s(rank: int) -> float:
    """Return the step time of a rank: rank 1 is the slowest, then the others in their order, all in one bin."""
    return 10.0 if rank == 1 else 2.0 - rank / 100


def waited_s(rank: int) -> float:
    """Return how long a rank waited for others in a step: rank 1, and least the last, which is slow by itself."""
    return 9.5 if rank == 1 else 0.5 / (rank + 1)


def main() -> None:
    """Run as one rank."""
    path, (n_steps, every, *killed) = Path(sys.argv[1]), map(int, sys.argv[2:])
    comm = MPI.COMM_WORLD
    with Metrics(
        comm, path, meta={"run_id": "r"}, streams=STREAMS, summary=("wall_s",), every=every
    ) as metrics:
        metrics.event("repeats", "twice")
        for step in range(1, n_steps + 1):
            if killed == [comm.rank, step]:
                os.kill(os.getpid(), signal.SIGKILL)
            metrics.record(step, 100 * step, loss=1 / step, lr=step / 8)
            metrics.step(step, step_time_s(comm.rank), waited_s(comm.rank))
            if step % 5 == 0:
                metrics.flush()
            comm.Barrier()
        metrics.finish(n_steps, wall_s=12.5)


if __name__ == "__main__":
    main()
