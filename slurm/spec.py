"""What a job is: a program, the directory of its run, and what it needs. No machine and no shell in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from slurm.errors import SpecError
from slurm.site import WORD, Scheduler, check_environment

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,159}")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
LONGEST_PATH = 4095


@dataclass(frozen=True, slots=True)
class Resources:
    """One part of a job whose ranks are all alike; a job with several parts is a heterogeneous one."""

    ranks: int
    threads: int = 1
    """Cores a rank."""
    on_gpus: bool = True
    """Whether each rank takes one of the site's GPUs, where there are any."""

    def __post_init__(self) -> None:
        for name, value in (("ranks", self.ranks), ("threads", self.threads)):
            if value < 1:
                raise SpecError(f"resources.{name}={value}: at least 1")

    def ranks_per_node(self, scheduler: Scheduler) -> int:
        """Return how many of these ranks a node has room for. Raises SpecError when it is none."""
        by_cores = scheduler.node_cores // self.threads
        if not by_cores:
            raise SpecError(
                f"resources.threads={self.threads}: a node has {scheduler.node_cores} cores for its ranks"
            )
        gpus = scheduler.node_gpus if self.on_gpus else 0
        return min(by_cores, gpus or by_cores)

    def nodes(self, scheduler: Scheduler) -> int:
        """Return how many nodes the ranks fill, the last perhaps in part."""
        return -(-self.ranks // self.ranks_per_node(scheduler))


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job: ranks of one program at work on one run. Every field is checked, so a script can only quote it.

    Relative paths start from `directory`, or from where sbatch is called when that is None.
    """

    name: str
    program: str
    """Module that each rank runs."""
    run_dir: Path
    config: str
    """Text of the run's `run.yaml`; the job writes it, so that a script is all that a machine needs."""
    components: tuple[Resources, ...]
    python: Path
    directory: Path | None = None
    walltime_s: int | None = None
    """None = the longest that the queue grants so many nodes."""
    queue: str | None = None
    account: str | None = None
    restarts_max: int = 3
    """How often the job may requeue itself without a new checkpoint in between."""
    archive: Path | None = None
    """A packed environment (.tar, .tar.gz) with a `bin/python` for the ranks, unpacked on every node's own disk."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables for the ranks beside the site's own."""

    def __post_init__(self) -> None:
        check_job_name(self.name)
        if not _MODULE.fullmatch(self.program):
            raise SpecError(f"program {self.program!r}: the name of a Python module")
        for name in ("run_dir", "python", "directory", "archive"):
            check_path(name, getattr(self, name))
        if not self.components:
            raise SpecError("components: a job has at least one")
        if self.archive and len(self.components) > 1:
            raise SpecError("archive: sbcast does not reach all components of a heterogeneous job")
        if self.walltime_s is not None and self.walltime_s < 60:
            raise SpecError(f"walltime of {self.walltime_s} s: at least a minute, as Slurm counts in minutes")
        if self.restarts_max < 0:
            raise SpecError(f"restarts_max={self.restarts_max}: at least 0")
        if self.account is not None and not WORD.fullmatch(self.account):
            raise SpecError(f"account {self.account!r}: one word of letters, digits and '_'")
        if "\0" in self.config or "\r" in self.config:
            raise SpecError("config: the text of run.yaml holds a NUL or a carriage return")
        try:
            check_environment(self.environment)
        except ValueError as error:
            raise SpecError(str(error)) from None

    @property
    def ranks(self) -> int:
        """Ranks of all components together."""
        return sum(part.ranks for part in self.components)

    def nodes(self, scheduler: Scheduler) -> int:
        """Return the nodes of all components together."""
        return sum(part.nodes(scheduler) for part in self.components)

    def granted_s(self, scheduler: Scheduler) -> int:
        """Return the walltime to ask for: the wanted one, else the queue's longest for so many nodes.

        Raises:
            SpecError: no queue of the site takes so many nodes.
        """
        queue = scheduler.queue(self.queue)
        longest_s = queue.walltime_max_s(self.nodes(scheduler))
        if not longest_s and self.walltime_s is None:
            raise SpecError(
                f"{self.nodes(scheduler)} nodes: queue '{queue.name}' takes at most {queue.nodes_max} of them"
            )
        return self.walltime_s or longest_s


def parse_walltime(text: str) -> int:
    """Return the seconds in `H:MM:SS` or `MM` (minutes), as sbatch reads them. Raises SpecError."""
    if match := re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", text):
        hours, minutes, seconds = map(int, match.groups())
        return 3600 * hours + 60 * minutes + seconds
    if re.fullmatch(r"\d{1,6}", text):
        return 60 * int(text)
    raise SpecError(f"walltime {text!r}: write hours:minutes:seconds, such as 2:00:00, or minutes")


def format_walltime(seconds: int) -> str:
    """Return seconds as `HH:MM:SS`."""
    return f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def capture(names: Iterable[str], environment: dict[str, str]) -> dict[str, str]:
    """Return those variables of `environment` that are named: an allow-list, so that a secret stays where it is."""
    return {name: environment[name] for name in names if name in environment}


def check_job_name(name: str) -> None:
    """Refuse a name that a directive or a log's name could not hold as it is. Raises SpecError."""
    if not _NAME.fullmatch(name):
        raise SpecError(f"job name {name!r}: 1 to 160 letters, digits, '_', '.', '-', not first '.' or '-'")


def check_path(name: str, path: Path | None) -> None:
    """Refuse what no file is called on purpose. Anything else is data and gets quoted. Raises SpecError."""
    if path is None:
        return
    text = str(path)
    if not text.isprintable():
        raise SpecError(f"{name} {text!r}: a path of one printable line")
    if len(text) > LONGEST_PATH or any(len(part) > 255 for part in path.parts):
        raise SpecError(
            f"{name} of {len(text)} characters: at most {LONGEST_PATH}, and 255 between two slashes"
        )
    if text.startswith("-"):
        raise SpecError(
            f"{name} {text!r}: begins with '-', which commands take for an option; write ./{text}"
        )
    if ".." in path.parts:
        raise SpecError(f"{name} {text!r}: holds '..', write out where it leads")
