"""The jobs of a study at the scheduler, its allocations and those of single runs: where they stand, and their end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.rundir import is_locked, write_private
from slurm.client import Client
from slurm.errors import RefusedError
from slurm.poll import Poll, Submitted
from workflows.batch import jobs_of
from workflows.pilots import read_pilots
from workflows.progress import RunStatus
from workflows.study import LOCK, STOP, Study

STOP_S = 90.0
"""How long a driver may take to end what it has at work."""


@dataclass(frozen=True, slots=True)
class StudyJob:
    """A job of a study: for which run, or for all (empty)."""

    run_id: str
    token: str
    submitted: Submitted


class Watch:
    """Asks about a study's jobs, with one question at a time and never more often than the site allows."""

    def __init__(self, study: Study) -> None:
        self._study, self._due_s = study, 0.0
        self._poll = Poll(Client(), study.site.slurm().poll_range_s) if study.site.scheduler else None
        self._sentences: list[str] = []
        self._some_wait = False

    def tick(self, statuses: list[RunStatus]) -> list[str]:
        """Return a sentence for each job that has not ended, is not heard of, or ended while its run left no word."""
        jobs = [job for job in study_jobs(self._study) if job.submitted.job_id]
        if self._poll is None or not jobs:
            self._sentences, self._some_wait = [], False
            return []
        if time.monotonic() < self._due_s:
            return self._sentences
        states = self._poll.tick([job.submitted for job in jobs])
        self._due_s = time.monotonic() + self._poll.pause_s
        wordless = {status.run_id for status in statuses if status.state == "interrupted"}
        self._some_wait = any(state.phase != "ended" for state in states.values())
        self._sentences = [
            f"{f'job {number} of {job.run_id}' if job.run_id else f'allocation {number}'} {state.sentence}"
            for job in jobs
            if (state := states[number := job.submitted.job_id]).phase != "ended" or job.run_id in wordless
        ]
        return self._sentences

    def goes_on(self, statuses: list[RunStatus]) -> bool:
        """Return whether anything may still change: a driver, a run or a job is at work."""
        running = any(status.state == "running" for status in statuses)
        return running or self._some_wait or is_locked(self._study.directory / LOCK)


def study_jobs(study: Study) -> list[StudyJob]:
    """Return the jobs of a study that are not known to have ended; without a number where none was heard."""
    found = [
        StudyJob("", pilot.token, pilot.submitted)
        for pilot in read_pilots(study.directory)
        if pilot.ended_s is None
    ]
    for run in study.runs:
        found += [
            StudyJob(
                run.id, entry["token"], Submitted(entry["job_id"] or "", entry["name"], entry["submitted_s"])
            )
            for entry in jobs_of(study.run_dir(run))[-1:]
        ]
    return found


def cancel_study(study: Study, say: Callable[[str], None]) -> list[str]:
    """End a study's driver and its jobs, and return a sentence for each.

    Raises:
        UnreachableError: the scheduler does not answer, so jobs may go on.
    """
    done = _stop_driver(study.directory, say)
    tokens = {job.token: job for job in study_jobs(study)}
    if study.site.scheduler is None or not tokens:
        return done or [f"{study.directory}: nothing of it is at work"]
    client = Client()
    for answer in client.queued().values():
        if answer.comment in tokens and answer.state.phase != "ended":
            try:
                client.cancel(answer.job_id)
            except RefusedError:  # it has ended in between
                continue
            done.append(
                f"job {answer.job_id} ({tokens[answer.comment].run_id or 'allocation'}) was cancelled"
            )
    return done or [f"{study.directory}: nothing of it is at work"]


def _stop_driver(directory: Path, say: Callable[[str], None]) -> list[str]:
    """Ask the driver that holds the study to stop, wherever it is, and wait for that."""
    if not is_locked(directory / LOCK):
        return []
    write_private(directory / STOP, "")
    say("asked the driver to stop; its ranks commit what they have")
    deadline_s = time.monotonic() + STOP_S
    while is_locked(directory / LOCK):
        if time.monotonic() > deadline_s:
            return [f"the driver has not stopped in {STOP_S:g} s; {directory / LOCK} says where it is"]
        time.sleep(0.2)
    return ["the driver has stopped"]
