"""Ranks of a job that takes steps of nothing. Started as `python -m mpi4py -m tests.slurm.steps RUN_DIR`.

The run's configuration says what they do: `finish` (after 3 steps), `until_warned` (the first attempt takes steps until
a signal comes, commits one and asks to be requeued; later ones finish), `never_on` (asks at once, without a
checkpoint), `refuse` (ends with code 3), `deaf` (does not care for the warning; MPICH then swallows it).
"""

from __future__ import annotations

import signal
import time

from launch import bootstrap
from launch.errors import LaunchError
from launch.rundir import make_private
from launch.signals import StopSignals
from slurm.strict_yaml import load

SECONDS = 60
HEARD = (signal.SIGUSR1, signal.SIGTERM)


class Refused(LaunchError):
    exit_code = 3


def main() -> None:
    with bootstrap.start() as job:
        behaviour = load(job.run.config).data["behaviour"]
        if behaviour == "refuse":
            raise Refused("this run is refused")
        if behaviour == "never_on":
            raise bootstrap.RequeueRequest("no time at all")
        waits = job.attempt == 1 and behaviour in ("until_warned", "deaf")
        with StopSignals(job.comm, () if behaviour == "deaf" else HEARD) as stop:
            if job.rank == 0:
                (job.run.path / "ready").touch()
            for job.step in range(20 * SECONDS if waits else 3):
                time.sleep(0.05)
                if stop.boundary():
                    if job.rank == 0:
                        make_private(job.run.checkpoints / f"step-{job.step:08d}")
                    raise bootstrap.RequeueRequest("the walltime is near")


if __name__ == "__main__":
    main()
