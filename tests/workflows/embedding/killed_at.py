"""The program itself, but that rank RANK sends itself a signal when it is about to do step STEP.

`RUN_DIR RANK STEP SIGNAL`, the last a number. Instead of signal 0 it takes long over that step and all after it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mpi4py import MPI

from launch.rundir import RunDir
from slurm.strict_yaml import load
from workflows.embedding import methods, program

if __name__ == "__main__":
    rank, step, number = (int(sys.argv.pop(2)) for _ in range(3))
    config = load(RunDir(Path(sys.argv[1])).config).data["config"]
    method = type(methods.get(config["embedding"]["method"]))
    advance = method.advance

    def advance_or_die(self, problem, state, at):
        if (MPI.COMM_WORLD.rank, at) == (rank, step) and number:
            os.kill(os.getpid(), number)
        if MPI.COMM_WORLD.rank == rank and at >= step and not number:
            time.sleep(6)
        advance(self, problem, state, at)

    method.advance = advance_or_die
    program.main()
