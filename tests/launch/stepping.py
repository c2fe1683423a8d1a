"""A program of short steps for tests of signals and of the watchdog: RUN_DIR/behaviour says what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from mpi4py import MPI

from launch import bootstrap
from launch.signals import StopSignals
from launch.watchdog import Watchdog

STEPS, BAD_STEP, STEP_S = 200, 10, 0.02


def hang(behaviour: str) -> None:
    """Stop going on, in one of several ways."""
    if behaviour.startswith("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        time.sleep(0.1)


def step(comm: MPI.Intracomm, behaviour: str, number: int) -> None:
    """Meet the others once; the bad rank does not."""
    time.sleep(STEP_S)
    kind, _, rank = behaviour.partition(" ")
    if number == BAD_STEP and rank == str(comm.rank):
        hang(kind)
    comm.Barrier()


def main() -> None:
    """Run as one rank."""
    with bootstrap.start() as job:
        behaviour = Path(job.run.path / "behaviour").read_text()
        limit_s = float(os.environ.get("WATCHDOG_S", "30"))
        with StopSignals(job.comm) as stop, Watchdog(job, limit_s) as watchdog:
            for number in range(1, STEPS + 1):
                step(job.comm, behaviour, number)
                job.step = number
                watchdog.beat()
                if number == 3:
                    (job.run.path / f"pid{job.rank}").write_text(str(os.getpid()))
                if asked := stop.boundary():
                    (job.run.path / f"stopped{job.rank}").write_text(json.dumps([asked.name, number]))
                    raise bootstrap.RequeueRequest(f"{asked.name} after step {number}")
        sys.stdout.write("all steps done\n")


if __name__ == "__main__":
    main()
