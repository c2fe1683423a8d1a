"""The first and last lines of every rank: who am I, is this the world that was asked for, how did it end.

mpi4py is imported here, before any program imports torch: on some machines the network driver demands it.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mpi4py import MPI

from launch import lifeline, provenance
from launch.agree import on_root
from launch.binding import Binding, bind
from launch.errors import LaunchError
from launch.rundir import ExitRecord, RunDir, locked, write_exit
from slurm.site import NodeGpus
from slurm.strict_yaml import load

WORLD_SIZE_VARIABLES = ("ISOFLOP_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
REQUEUE = 75


class WorldSizeError(LaunchError):
    """MPI started another number of ranks than the launcher was asked for."""

    exit_code = 3


class RequeueRequest(Exception):  # noqa: N818  (a request, raised by every rank at the same step)
    """Every rank has committed its state and asks for another attempt; the process ends with exit code 75."""


@dataclass(slots=True)
class Job:
    """One rank's view of the attempt it belongs to. `step` is the last finished step, kept by the program."""

    run: RunDir
    attempt: int
    comm: MPI.Intracomm
    local_rank: int
    binding: Binding | None = None
    """What this rank is to use of a site with GPUs, once it was seen to have it."""
    started_s: float = field(default_factory=time.time)
    step: int = -1

    @property
    def rank(self) -> int:
        """This rank's number in the world."""
        return self.comm.rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.comm.size

    @property
    def device(self) -> int:
        """This rank's GPU among those it sees: the one that its binding found nearest, else one by its local rank."""
        return self.local_rank if self.binding is None else self.binding.device

    def exit_record(self, code: int, cause: str) -> ExitRecord:
        """Return the record of this attempt ending now, on this rank's word."""
        return ExitRecord(code, cause, self.rank, self.step, self.started_s, time.time())


@contextmanager
def start(argv: Sequence[str] | None = None) -> Iterator[Job]:
    """Run the body as one rank of the job that `argv` (RUN_DIR [--attempt N]) names, and record how it ended.

    Rank 0 holds the run's lock throughout. A body that returns ends the attempt with code 0. RequeueRequest,
    raised by all ranks, ends it with 75. An exception with an `exit_code` is a mistake of the user's: its
    sentence goes to stderr and the job ends with that code. Any other is left to `python -m mpi4py`,
    which prints the traceback and ends every rank.

    Where the run's site has GPUs, every rank is held against its bindings first.

    Cost: two broadcasts, one gather of host names and three barriers in all, and that of `bind` on a site with GPUs.
    """
    parser = argparse.ArgumentParser(description="one rank of a run; started by mpiexec or srun")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, default=0, help="attempt number; default: the next one")
    options = parser.parse_args(argv)
    os.umask(0o077)
    comm = MPI.COMM_WORLD
    job: Job | None = None
    with ExitStack() as held:
        try:
            job = _join(comm, RunDir(options.run_dir.resolve()), options.attempt, held)
            if machine := on_root(comm, partial(_gpus, job.run)):
                job.binding = bind(comm, machine)
            yield job
            comm.Barrier()  # success is every rank's success
            if job.rank == 0:
                write_exit(job.run, job.attempt, job.exit_record(0, "finished"))
            return
        except RequeueRequest as request:
            assert job is not None  # noqa: S101  (only the body raises it)
            if job.rank == 0:
                write_exit(job.run, job.attempt, job.exit_record(REQUEUE, str(request)))
        except Exception as error:
            code = getattr(error, "exit_code", 1)
            cause = str(error) if hasattr(error, "exit_code") else f"{type(error).__name__}: {error}"
            if job is not None:
                with suppress(LaunchError):  # the disk that ended the run may be full for its record, too
                    write_exit(job.run, job.attempt, job.exit_record(code, cause))
            if not hasattr(error, "exit_code"):
                raise
            _say(comm.rank, cause)
            comm.Abort(code)
    # A bare sys.exit(75) under `python -m mpi4py` would abort the others in the middle of a write.
    comm.Barrier()
    MPI.Finalize()
    sys.exit(REQUEUE)


def _join(comm: MPI.Intracomm, run: RunDir, attempt: int, held: ExitStack) -> Job:
    """Check the world, take the run's lock on rank 0 and agree on the attempt's number."""
    for name in WORLD_SIZE_VARIABLES:
        wanted = os.environ.get(name)
        if wanted and int(wanted) != comm.size:
            raise WorldSizeError(
                f"{name}={wanted}, but MPI started {comm.size} ranks: mpi4py and the launcher belong to "
                f"different MPI libraries (here: {_library()})"
            )
    if comm.rank == 0:
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since_s": time.time()}
        held.enter_context(locked(run.lock, "this run", note))
        attempt = attempt or run.next_attempt()
    attempt = comm.bcast(attempt)
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)  # SLURM_LOCALID is wrong under mpiexec inside sbatch
    local_rank = node.rank
    node.Free()
    lifeline.hold(comm.rank)
    ranks = comm.gather((socket.gethostname(), os.getpid()))
    if ranks is not None:
        provenance.record(run, attempt, provenance.collect(ranks, _library()))
    comm.Barrier()  # from here on the parent can tell which rank a lost process was
    return Job(run, attempt, comm, local_rank)


def _gpus(run: RunDir) -> NodeGpus | None:
    """Return the GPUs of a node as the run's configuration has them from its site, None where there are none."""
    held = load(run.config).data.get("gpus") if run.config.exists() else None
    return NodeGpus(**{**held, "gpu_of_l3": tuple(held["gpu_of_l3"])}) if held else None


def _library() -> str:
    return MPI.Get_library_version().splitlines()[0].strip("\x00 \t")


def _say(rank: int, sentence: str) -> None:
    sys.stderr.write(f"rank {rank}: {sentence}\n")  # one write, so that no other rank's line comes between
    sys.stderr.flush()
    if os.environ.get("ISOFLOP_TRACEBACK"):
        traceback.print_exc()
