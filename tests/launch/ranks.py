"""A small program for launcher tests: every rank does what the file RUN_DIR/behaviour says."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from mpi4py import MPI

from launch import bootstrap
from workflows.errors import ConfigError


def behave(job: bootstrap.Job, behaviour: str) -> None:
    """Do one of the things a rank may do."""
    job.step = 7
    if behaviour == "requeue":
        raise bootstrap.RequeueRequest("the walltime is near")
    if behaviour == "wait":
        (job.run.path / f"rank{job.rank}").write_text(str(os.getpid()))
        deadline = time.monotonic() + 60
        while not (job.run.path / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    if job.rank == job.world_size - 1:
        if behaviour == "raise":
            raise ValueError("boom")
        if behaviour == "vanish":
            shutil.rmtree(job.run.path)
        if behaviour in ("mistake", "vanish"):
            raise ConfigError("text.txt: the file is empty")
        if behaviour == "killed":
            for _ in range(50):  # a process of many threads is long in going
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            time.sleep(0.5)  # the parent can tell who went first once it has seen who there is
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "exit":
            sys.exit(3)
    MPI.COMM_WORLD.Barrier()
    # One write: an unbuffered `print` makes two, and another rank's line may come between them.
    sys.stdout.write(f"rank {job.rank} of {job.world_size}, local {job.local_rank}\n")


def main() -> None:
    """Run as one rank."""
    with bootstrap.start() as job:
        behave(job, Path(job.run.path / "behaviour").read_text())


if __name__ == "__main__":
    main()
