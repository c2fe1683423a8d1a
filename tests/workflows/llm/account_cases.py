"""Runs in which something is wrong, one after the other in one world: `account_cases.py DIRECTORY CONFIG`.

Prints {case: {rank: the error it ended with}} as JSON. Each case takes a fault and what is changed of the config.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from mpi4py import MPI  # isort: skip  (MPI comes before torch)
from launch import checkpoint, shared_file
from launch.bootstrap import Job, RequeueRequest
from launch.rundir import RunDir
from mpi_ops.process_group import destroy_process_group, init_process_group
from workflows.llm import program
from workflows.llm.config import LlmConfig
from workflows.llm.parallelize import ParallelModel

ADVANCE, GRADIENTS, COUNT = program.advance, ParallelModel.gradients, ParallelModel._count
PEAK_FLOPS_PER_S = 1000.0
NOT_FINITE_AT = (3, 4)


@contextmanager
def none() -> Iterator[None]:
    """No fault."""
    yield


@contextmanager
def a_gradient_overflows_on_the_last_rank() -> Iterator[None]:
    """At the steps NOT_FINITE_AT, before its norm is taken."""
    here: list[program.Training] = []

    def advance(run: program.Training) -> None:
        here[:] = [run]
        ADVANCE(run)

    def gradients(model: ParallelModel) -> dict[str, Any]:
        found = GRADIENTS(model)
        comm = MPI.COMM_WORLD
        if here[0].step + 1 in NOT_FINITE_AT and comm.rank == comm.size - 1:
            next(iter(found.values())).view(-1)[0] = float("inf")
        return found

    with (
        mock.patch.object(program, "advance", advance),
        mock.patch.object(ParallelModel, "gradients", gradients),
    ):
        yield


@contextmanager
def a_rank_counts_nothing() -> Iterator[None]:
    """The last one's tokens are missing, as when another part of the program has another batch size."""

    def count(model: ParallelModel, targets: Any) -> None:
        if MPI.COMM_WORLD.rank == 0:
            COUNT(model, targets)

    with mock.patch.object(ParallelModel, "_count", count):
        yield


@contextmanager
def the_disk_is_full_after_the_first_save() -> Iterator[None]:
    """Data files of checkpoints lead to /dev/full; training goes on once all ranks have seen the save end."""

    def advance(run: program.Training) -> None:
        if run.step == 6:
            run.saver.wait()
            shared_file.new_file = lambda path: open("/dev/full", "wb")  # noqa: SIM115  (its caller closes it)
        if run.step == 11:
            raise AssertionError("nobody heard of the full disk")
        ADVANCE(run)
        if run.step == 10:
            run.saver._thread.join()
            run.job.comm.Barrier()

    with (
        mock.patch.object(program, "advance", advance),
        mock.patch.object(shared_file, "new_file", shared_file.new_file),
    ):
        yield


@contextmanager
def the_last_rank_is_warned_once_a_save_has_begun() -> Iterator[None]:
    """After step 5; the save takes longer than a step."""

    def advance(run: program.Training) -> None:
        ADVANCE(run)
        if run.step == 5 and run.job.rank == run.job.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    def slow(path: Path) -> Any:
        time.sleep(1)
        return made(path)

    made = shared_file.new_file
    with mock.patch.object(program, "advance", advance), mock.patch.object(shared_file, "new_file", slow):
        yield


CASES: dict[str, tuple[Any, float, dict[str, Any]]] = {
    "sound": (none, 0.0, {"async_checkpoint": True}),
    "too_fast": (none, PEAK_FLOPS_PER_S, {}),
    "skips": (a_gradient_overflows_on_the_last_rank, 0.0, {"skip_nonfinite": 2}),
    "skips_too_few": (
        a_gradient_overflows_on_the_last_rank,
        0.0,
        {"skip_nonfinite": 1, "checkpoint_every": 3},
    ),
    "miscounts": (a_rank_counts_nothing, 0.0, {}),
    "stopped": (the_last_rank_is_warned_once_a_save_has_begun, 0.0, {"async_checkpoint": True}),
    "full_disk": (the_disk_is_full_after_the_first_save, 0.0, {"async_checkpoint": True}),
}


def attempt(comm: MPI.Intracomm, run: RunDir, case: str, data: dict[str, Any]) -> str:
    """Run one attempt and return the sentence that it ended with."""
    fault, peak, changed = CASES[case]
    config = LlmConfig.model_validate({**data, "train": {**data["train"], **changed}})
    run.path.mkdir(exist_ok=True)
    number = comm.bcast(run.next_attempt() if comm.rank == 0 else None)
    init_process_group(comm, config.parallel.backend, 60.0)
    try:
        with fault():
            program.train(Job(run, number, comm, comm.rank), config, run.path.parent / "cache", peak)
        ended = "finished"
    except Exception as error:
        ended = f"{getattr(error, 'exit_code', None)} {error}"
        if isinstance(error, RequeueRequest):
            ended += f", checkpoints of steps {checkpoint.steps(run.checkpoints)}"
    destroy_process_group(comm)
    return ended


def main() -> None:
    """Run every case, the one that ends early a second time."""
    comm, directory, data = MPI.COMM_WORLD, Path(sys.argv[1]), json.loads(sys.argv[2])
    found = {}
    for case in (*CASES, "skips_too_few"):
        found[case] = comm.gather(attempt(comm, RunDir(directory / case), case, data))
    if comm.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    os.umask(0o077)
    main()
