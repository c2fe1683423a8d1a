"""Train many runs one after the other in one world: `many_runs.py CASES.json`, a list of objects

`{"run": directory, "config": LlmConfig, "cache_dir": directory, "stop_before": step or null, "save_first": bool}`. A
run that stops does so as by a kill: without a last checkpoint. A run that comes twice goes on where it stopped; with
`save_first` it saves what it has taken up before it does a step, and keeps that in `taken-up-STEP` beside the run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from mpi4py import MPI  # isort: skip  (MPI comes before torch)
from launch.bootstrap import Job
from launch.rundir import RunDir
from mpi_ops.process_group import destroy_process_group, device_of, init_process_group
from workflows.llm import program
from workflows.llm.config import LlmConfig

ADVANCE = program.advance


class Stopped(Exception):
    """The step before which the run was to stop is due."""


def stop_before(step: int | None, save_first: bool) -> None:
    due = [save_first]

    def advance(run: program.Training) -> None:
        if due and due.pop():
            program.save(run)
            run.saver.wait()
            if run.job.rank == 0:
                kept = run.job.run.path.with_name(f"taken-up-{run.step}")
                shutil.copytree(run.job.run.checkpoints, kept)
        if run.step + 1 == step:
            run.saver.wait()
            raise Stopped
        ADVANCE(run)

    program.advance = advance


def main() -> None:
    comm = MPI.COMM_WORLD
    for case in json.loads(Path(sys.argv[1]).read_text()):
        config = LlmConfig.model_validate(case["config"])
        run = RunDir(Path(case["run"]))
        run.path.mkdir(parents=True, exist_ok=True)
        attempt = comm.bcast(run.next_attempt() if comm.rank == 0 else None)
        stop_before(case["stop_before"], case.get("save_first", False))
        device = device_of(config.parallel.backend, comm.rank)
        init_process_group(comm, config.parallel.backend, config.parallel.timeout_s, device)
        try:
            job = Job(run, attempt, comm, comm.rank)
            program.train(job, config, Path(case["cache_dir"]), device=device)
        except Stopped:
            comm.Barrier()
        destroy_process_group(comm)


if __name__ == "__main__":
    os.umask(0o077)
    main()
