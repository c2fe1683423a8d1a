"""Where many jobs stand, with one question a tick. What is not heard of is unknown: neither at work nor done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slurm.client import Answer, Client
from slurm.errors import UnreachableError
from slurm.states import JobState, unknown_since

SLOWER = 1.5


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that was handed in: numbers are used again after years, so name and time belong to it."""

    job_id: str
    name: str
    submitted_s: float


class Poll:
    """Asks for jobs seldom, and more seldom while nothing changes. `every_s` is the shortest and longest pause."""

    def __init__(
        self, client: Client, every_s: tuple[float, float], now: Callable[[], float] = time.time
    ) -> None:
        self.pause_s = every_s[0]
        """How long to wait before the next tick."""
        self.jobs_there: int | None = None
        """This user's jobs, ours or not, that wait or run; None when the last question had no answer."""
        self._client, self._every_s, self._now = client, every_s, now
        self._last: dict[str, JobState] = {}
        self._silent_s: dict[str, float] = {}

    def tick(self, jobs: Sequence[Submitted]) -> dict[str, JobState]:
        """Return the state of each job by id, and set the pause: the shortest after a change.

        Asks squeue once; for jobs that it does not list, the accounting once, and the controller one by one.
        """
        try:
            listed = self._client.queued()
            self.jobs_there = sum(answer.state.phase != "ended" for answer in listed.values())
            answers = self._heard(jobs, listed)
        except UnreachableError:
            self.jobs_there, answers = None, {}
        states = {job.job_id: self._state(job, answers.get(job.job_id)) for job in jobs}
        changed = {key: state.phase for key, state in states.items()} != {
            key: state.phase for key, state in self._last.items() if key in states
        }
        shortest_s, longest_s = self._every_s
        self.pause_s = shortest_s if changed else min(longest_s, self.pause_s * SLOWER)
        self._last = states
        return states

    def _heard(self, jobs: Sequence[Submitted], listed: dict[str, Answer]) -> dict[str, Answer]:
        """Return the answers that are about these very jobs, first from those that squeue has listed."""
        found = _theirs(jobs, listed)
        for source in (self._client.accounted, self._remembered):
            missing = [job for job in jobs if job.job_id not in found]
            if not missing:
                break
            try:
                found |= _theirs(missing, source({job.job_id for job in missing}))
            except UnreachableError:
                continue
        return found

    def _remembered(self, job_ids: set[str]) -> dict[str, Answer]:
        shown = {job_id: self._client.shown(job_id) for job_id in sorted(job_ids)}
        return {job_id: answer for job_id, answer in shown.items() if answer}

    def _state(self, job: Submitted, answer: Answer | None) -> JobState:
        if answer is None:
            since_s = self._silent_s.setdefault(job.job_id, self._now())
            return unknown_since(time.strftime("%F %T", time.localtime(since_s)))
        self._silent_s.pop(job.job_id, None)
        return answer.state


def _theirs(jobs: Sequence[Submitted], answers: dict[str, Answer]) -> dict[str, Answer]:
    """Return the answers without those on an older job of the same number."""
    names = {job.job_id: job for job in jobs}
    return {
        job_id: answer
        for job_id, answer in answers.items()
        if job_id in names and answer.name == names[job_id].name and not _before(answer, names[job_id])
    }


def _before(answer: Answer, job: Submitted) -> bool:
    """Return whether the answer is on a job that ended before this one was handed in."""
    try:
        return time.mktime(time.strptime(answer.ended, "%Y-%m-%dT%H:%M:%S")) + 1 < job.submitted_s
    except ValueError:  # no end, or `Unknown`
        return False
