"""One run of a study as a batch job of its own: rendered, checked and sent without Parsl."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.rundir import RunDir, locked, make_private, write_private
from slurm.client import Client
from slurm.poll import Poll, Submitted
from slurm.preflight import preflight
from slurm.script import render
from slurm.spec import JobSpec, Resources, capture, parse_walltime
from slurm.strict_yaml import dumps
from workflows.errors import ConfigError, RefusedError
from workflows.study import Run, Study

CAPTURED = ("PYTHONPATH", "HDF5_USE_FILE_LOCKING", "ISOFLOP_TRACEBACK")
"""Variables of this shell that a job takes with it, and no others."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line may say about a job beyond its study."""

    walltime: str | None = None
    queue: str | None = None
    account: str | None = None
    restarts_max: int = 3
    archive: Path | None = None
    portable: bool = False
    """Whether paths start from where sbatch is called, so that the script may travel with a checkout."""


def pick(study: Study, run_id: str | None) -> Run:
    """Return the run that is named, or the only one of the study. Raises ConfigError."""
    found = [run for run in study.runs if run_id in (None, run.id)]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(run.id for run in study.runs)
    wrong = (
        f"no run '{run_id}'"
        if run_id
        else f"a job is one run, this study has {len(found)}; name one with --run"
    )
    raise ConfigError(f"{study.file.name}: {wrong}; there is {ids}")


def job_spec(study: Study, run: Run, wishes: Wishes) -> JobSpec:
    """Return the job that brings `run` to its end at the study's site.

    Raises:
        SpecError: something that no script may hold; the sentence names it.
    """
    here = Path.cwd()
    directory = study.run_dir(run).path
    cache_dir = study.cache_dir
    return JobSpec(
        name=f"{study.file.name}.{run.id}",
        program=study.workflow.program,
        run_dir=directory if wishes.portable else here / directory,
        config=study.run_yaml(run, cache_dir if wishes.portable else cache_dir.resolve()),
        components=(Resources(run.resources.ranks, run.resources.threads),),
        python=Path(".venv/bin/python") if wishes.portable else Path(sys.executable),
        directory=None if wishes.portable else here,
        walltime_s=parse_walltime(wishes.walltime) if wishes.walltime else None,
        queue=wishes.queue,
        account=wishes.account,
        restarts_max=wishes.restarts_max,
        archive=wishes.archive,
        environment={} if wishes.portable else capture(CAPTURED, dict(os.environ)),
    )


def script(study: Study, run_id: str | None, wishes: Wishes) -> str:
    """Return the batch script of one run. Touches nothing."""
    return render(job_spec(study, pick(study, run_id), wishes), study.site)


def submit(
    study: Study, run_id: str | None, wishes: Wishes, client: Client, say: Callable[[str], None]
) -> Submitted:
    """Check one run, hand its script to the scheduler, and return the job, which is noted in the run's `jobs.json`.

    Raises:
        RefusedError: the run is done or at work, or something would make the job fail: a sentence for each.
        UnreachableError: the scheduler does not answer; the same command finds out whether it took the job.
    """
    run = pick(study, run_id)
    job = job_spec(study, run, wishes)
    directory = study.run_dir(run)
    script = render(job, study.site)
    if problems := preflight(job, study.site, os.environ, client):
        raise RefusedError("\n".join(problems))
    make_private(directory.path)
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since_s": time.time()}
    with locked(directory.path / "submit.lock", "submitting this run", note):
        _not_at_work(directory, run, client)
        say(study.workflow.prepare(run.config, study.cache_dir.resolve()))
        write_private(study.directory / "study.yaml", dumps(study.resolved))
        token = f"isoflop-{secrets.token_hex(8)}"
        entry = {"token": token, "name": job.name, "submitted_s": time.time(), "job_id": None}
        _note(directory, entry)  # first the token: should the answer be lost, the job can still be found
        entry["job_id"] = client.submit(script, token, directory.path.resolve())
        _note(directory, entry)
    return _submitted(entry)


def follow(
    study: Study, run_id: str | None, job: Submitted, client: Client, say: Callable[[str], None]
) -> int:
    """Wait until a job has ended and return the code that the run's own record gives, 1 when it has none."""
    poll, before = Poll(client, study.site.slurm().poll_range_s), ""
    while True:
        state = poll.tick([job])[job.job_id]
        if state.sentence != before:
            say(f"{time.strftime('%T')} job {job.job_id} {state.sentence}")
        if state.phase == "ended":
            record = study.run_dir(pick(study, run_id)).last_exit()
            return record.code if record else 1
        before = state.sentence
        time.sleep(poll.pause_s)


def jobs_of(directory: RunDir) -> list[dict[str, Any]]:
    """Return the jobs that were handed in for a run, oldest first; a `job_id` of None was never heard of."""
    try:
        held: list[dict[str, Any]] = json.loads((directory.path / "jobs.json").read_text())
    except (OSError, ValueError):
        return []
    return held


def _not_at_work(directory: RunDir, run: Run, client: Client) -> None:
    """Refuse a run that is done, at work, or waiting in a job of its own."""
    state = directory.state()
    if state in ("done", "running"):
        raise RefusedError(f"{run.id} is {state}; there is nothing to submit")
    held, known = jobs_of(directory), client.queued()
    for answer in known.values():
        mine = any(answer.comment == entry["token"] for entry in held)
        if mine and answer.state.phase != "ended":
            raise RefusedError(
                f"{run.id} has job {answer.job_id} already, which {answer.state.sentence}; "
                f"`scancel {answer.job_id}` gives it up"
            )


def _note(directory: RunDir, entry: dict[str, Any]) -> None:
    """Write an entry of `jobs.json`, in the place of the one with its token."""
    others = [held for held in jobs_of(directory) if held["token"] != entry["token"]]
    write_private(directory.path / "jobs.json", json.dumps([*others, entry], indent=1) + "\n")


def _submitted(entry: dict[str, Any]) -> Submitted:
    return Submitted(entry["job_id"], entry["name"], entry["submitted_s"])
