"""The scheduler's own commands, as argument vectors with a time limit. No shell ever sees them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.errors import RefusedError, UnreachableError
from slurm.states import JobState, describe

JOB_ID = re.compile(r"[1-9]\d*")
TOKEN = re.compile(r"isoflop-[0-9a-f]{16,64}")
_LISTED = re.compile(r"([1-9]\d*)(?:\+0)?")
"""A job in a list; of a heterogeneous one, the first component, which stands for all. Array tasks are not ours."""
_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed out|failure)|zero bytes"
    r"|configuration source|backup controller|authentication|insane message|slurmdbd|no such file or directory \(",
    re.IGNORECASE,
)
_SPEAKER = re.compile(r"^\w+: (error: |fatal: )?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """One job in an answer of the scheduler's. `ended` is the text of its end time, empty when not given."""

    job_id: str
    state: JobState
    name: str
    comment: str = ""
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Client:
    """Asks Slurm through its commands on PATH; SLURM_CONF says which Slurm, as always.

    Every method raises UnreachableError when there is no (sensible) answer within `timeout_s`.
    """

    timeout_s: float = 30.0

    def submit(self, script: str, token: str, directory: Path) -> str:
        """Hand in a script and return the job's id; its log goes to `directory`, `token` into the job's comment.

        Raises:
            RefusedError: the scheduler does not take it; the sentence is the scheduler's.
            UnreachableError: no answer. Whether the job was taken can be asked with its token.
        """
        if not TOKEN.fullmatch(token):
            raise ValueError(f"token {token!r}")
        argv = ["sbatch", "--parsable", f"--comment={token}", f"--chdir={directory}"]
        try:
            printed = self._ask(argv, script)
        except UnreachableError as error:  # its answer may be all that was lost
            return self._taken(token, error)
        job_id = printed.strip().partition(";")[0]  # ID or ID;CLUSTER
        if not JOB_ID.fullmatch(job_id):
            return self._taken(
                token, UnreachableError(f"sbatch printed {printed[:60]!r}, which is no job's number")
            )
        return job_id

    def _taken(self, token: str, error: UnreachableError) -> str:
        """Return the id of a job whose answer was lost, or raise."""
        try:
            found = self.find(token)
        except UnreachableError:
            found = None
        if found is None:
            raise UnreachableError(f"{error}; the same command finds out whether the job was taken") from None
        return found

    def test(self, script: str) -> str:
        """Return what the scheduler says about when the script would start. Raises RefusedError when never."""
        return _first_line(self._run(["sbatch", "--test-only"], script).stderr)

    def queued(self) -> dict[str, Answer]:
        """Return this user's jobs that the controller still knows, ended ones among them, by id."""
        columns = "--format=%i|%T|%r|%j|%k"
        found = {}
        for fields in _rows(self._ask(["squeue", "--me", "--noheader", "--states=all", columns]), 5):
            job_id, state, reason, name, comment = fields
            found[job_id] = Answer(job_id, describe(state, reason), name, comment)
        return found

    def find(self, token: str) -> str | None:
        """Return the id of the job that was handed in with this token, None when the controller knows of none."""
        return next((job.job_id for job in self.queued().values() if job.comment == token), None)

    def accounted(self, job_ids: Collection[str]) -> dict[str, Answer]:
        """Return what the accounting, or the log of completions, has on these jobs; empty where neither is kept."""
        ids, columns = ",".join(sorted(job_ids)), "--format=JobID,State,End,JobName"
        for options in (["-X"], ["-c"]):
            try:
                printed = self._ask(["sacct", *options, "--noheader", "--parsable2", "-j", ids, columns])
            except RefusedError:  # `Slurm accounting storage is disabled`
                continue
            found = {}
            for job_id, state, ended, name in _rows(printed, 4):
                if job_id in job_ids:
                    found[job_id] = Answer(job_id, describe(state), name, ended=ended)
            if found:
                return found
        return {}

    def shown(self, job_id: str) -> Answer | None:
        """Return one job as the controller remembers it, None when it does not."""
        try:
            printed = self._ask(["scontrol", "--oneliner", "show", "job", job_id])
        except RefusedError:
            return None
        held = dict(word.split("=", 1) for word in printed.split() if "=" in word)
        if held.get("JobId") != job_id or "JobState" not in held:
            return None
        return Answer(job_id, describe(held["JobState"], held.get("Reason", "")), held.get("JobName", ""))

    def cancel(self, job_id: str) -> None:
        """End a job. Raises RefusedError when it is not there or not yours."""
        self._ask(["scancel", job_id])

    def signal(self, job_id: str, name: str) -> None:
        """Send a signal to the ranks of a job, not to its script. Raises RefusedError when it is not there."""
        self._ask(["scancel", f"--signal={name}", job_id])

    def forgotten(self, job_id: str) -> bool:
        """Return whether the controller says in so many words that there is no job of that number."""
        try:
            self._ask(["scontrol", "--oneliner", "show", "job", job_id])
        except RefusedError as error:
            return "invalid job id" in str(error).lower()
        return False

    def _ask(self, argv: Sequence[str], script: str | None = None) -> str:
        return self._run(argv, script).stdout

    def _run(self, argv: Sequence[str], script: str | None) -> subprocess.CompletedProcess[str]:
        command = argv[0]
        try:
            done = subprocess.run(
                argv,
                input=script if script is not None else "",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout_s,
            )
        except FileNotFoundError:
            raise UnreachableError(
                f"{command} is not on PATH: this machine has no Slurm, or its module is not loaded"
            ) from None
        except subprocess.TimeoutExpired:
            raise UnreachableError(f"{command} did not answer within {self.timeout_s:g} s") from None
        if done.returncode:
            said = _first_line(done.stderr or done.stdout) or f"{command} ended with code {done.returncode}"
            lost = _UNREACHABLE.search(done.stderr) or done.returncode < 0
            raise (UnreachableError if lost else RefusedError)(f"{command}: {said}")
        return done


def _rows(printed: str, width: int) -> Iterator[list[str]]:
    """Yield the fields of every line that starts with a job's number; anything else is no answer."""
    for line in printed.splitlines():
        fields = line.split("|", width - 1)
        listed = _LISTED.fullmatch(fields[0])
        if len(fields) == width and listed:
            yield [listed[1], *(field.strip() for field in fields[1:])]


def _first_line(said: str) -> str:
    """Return the first sentence of a command's complaint, without its name before it."""
    lines = [_SPEAKER.sub("", line).strip() for line in said.splitlines() if line.strip()]
    return lines[0] if lines else ""
