"""The program itself, but that rank RANK kills itself when it is about to do step STEP: `RUN_DIR RANK STEP`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from mpi4py import MPI  # isort: skip  # noqa: F401  (MPI comes before torch)
from workflows.llm import program


def killing(rank: int, step: int, advance: Callable[[program.Training], None]):
    """Return `advance` with the fault in it."""

    def advance_or_die(run: program.Training) -> None:
        if (run.job.rank, run.step + 1) == (rank, step):
            os.kill(os.getpid(), signal.SIGKILL)
        advance(run)

    return advance_or_die


if __name__ == "__main__":
    rank, step = int(sys.argv.pop(2)), int(sys.argv.pop(2))
    program.advance = killing(rank, step, program.advance)
    program.main()
