"""An allocation of nodes that the runs of a study share, and the text of its batch script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from slurm.errors import SpecError
from slurm.script import GREETING, REQUEUE, STALE, environment
from slurm.site import WORD, Scheduler, Site
from slurm.spec import check_job_name, check_path, format_walltime

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Allocation:
    """Whole nodes for a command that starts runs on them. Every field is checked, so a script can only quote it."""

    name: str
    node_count: int
    walltime_s: int
    argv: tuple[str, ...]
    """The command, started once, on the first node, in `run_dir`."""
    run_dir: Path
    """An absolute directory, the study's."""
    python: Path
    queue: str | None = None
    account: str | None = None
    exclude: tuple[str, ...] = ()
    """Nodes that it must not get."""
    environment: dict[str, str] = field(default_factory=dict)
    restarts_max: int | None = None
    """How often it may requeue itself in a row without progress; None = never, since its command is one of many."""
    directory: Path | None = None
    """Where its command starts, None = `run_dir`."""
    archive: None = None

    def __post_init__(self) -> None:
        check_job_name(self.name)
        for name in ("run_dir", "python", "directory"):
            check_path(name, getattr(self, name))
        for word in self.exclude:
            if not _HOST.fullmatch(word):
                raise SpecError(f"exclude: {word!r} is no name of a node")
        if self.account is not None and not WORD.fullmatch(self.account):
            raise SpecError(f"account {self.account!r}: one word of letters, digits and '_'")
        if self.node_count < 1 or self.walltime_s < 60:
            raise SpecError(
                f"pilots: {self.node_count} nodes for {self.walltime_s} s; at least one, for a minute"
            )
        if any(not word.isprintable() for word in self.argv):
            raise SpecError(f"command {self.argv!r}: words of one printable line")

    def nodes(self, _scheduler: Scheduler) -> int:
        """Return the number of nodes, as a job of one run does."""
        return self.node_count


def render_allocation(allocation: Allocation, site: Site) -> str:
    """Return the sbatch script as text: same arguments, same bytes; touches no file.

    A pilot (restarts_max=None) lets Slurm warn its steps and never requeues itself; else the command is warned,
    and the job requeues itself when the command ends with 75, as long as files of runs are added in between.

    Raises:
        SiteError: the site has no scheduler or no such queue.
    """
    scheduler, nodes = site.slurm(), allocation.node_count
    head = [
        "#!/bin/bash -l",
        f"# {allocation.name}: {nodes} node{'s' * (nodes > 1)} of {site.name} that runs share, by `isoflop run`.",
        "",
        *(f"#SBATCH {option}" for option in _directives(allocation, scheduler)),
        "",
        f"cd -- {quote(str(allocation.directory or allocation.run_dir))} || exit 2",
        f"python={quote(str(allocation.python))}",
        "umask 077",
        *GREETING,
        "",
        *environment(allocation.environment, scheduler, nodes),
        "",
        "# MPICH would take up what killed ranks left.",
        f"stale={quote(STALE)}",
        f'srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --export=ALL bash -c "$stale"',
        "",
    ]
    command = " ".join(map(quote, allocation.argv))
    body = [f"exec {command}"] if allocation.restarts_max is None else _warned(allocation, scheduler, command)
    return "\n".join([*head, *body]) + "\n"


def _directives(allocation: Allocation, scheduler: Scheduler) -> Iterator[str]:
    queue = scheduler.queue(allocation.queue)
    requeues = allocation.restarts_max is not None
    yield f"--job-name={allocation.name}"
    yield f"--signal={'B:' if requeues else ''}{scheduler.signal}@{scheduler.warn_s}"
    yield "--requeue" if requeues else "--no-requeue"
    yield "--open-mode=append"
    yield "--output=%x-%j.out"
    yield "--export=NONE"
    if allocation.account:
        yield f"--account={allocation.account}"
    yield from (*queue.options, *scheduler.sbatch)
    yield f"--time={format_walltime(allocation.walltime_s)}"
    yield f"--nodes={allocation.node_count}"
    yield "--exclusive"
    if allocation.exclude:
        yield f"--exclude={','.join(allocation.exclude)}"


def _warned(allocation: Allocation, scheduler: Scheduler, command: str) -> list[str]:
    """Return the lines that pass the walltime's warning on to the command and requeue the job when it asks."""
    run_dir = quote(str(allocation.run_dir))
    return [
        f"study={run_dir}",
        'mkdir -p -- "$study" || exit 2',
        "progress() { find \"$study\" \\( -name 'step-*' -o -name 'attempt-*.exit.json' \\) | sort | cksum; }",
        "before=$(progress) command=",
        f'warn() {{ again=1; say "the walltime is near"; [ -z "$command" ] || kill -{scheduler.signal} "$command"; }}',
        f"trap warn {scheduler.signal}",
        f"{command} &",
        "command=$!",
        'again=1; while [ "$again" = 1 ]; do again=0; wait "$command"; code=$?; done  # a signal cuts a wait short',
        'say "the study ended with code $code"',
        f'if [ "$code" -eq {REQUEUE} ]; then',
        "  idle=0",
        '  if read -r job n <"$study/restarts" && [ "$job" = "$SLURM_JOB_ID" ]; then idle=$n; fi 2>/dev/null',
        '  if [ "$(progress)" != "$before" ]; then idle=0; else idle=$((idle + 1)); fi',
        f'  if [ "$idle" -gt {allocation.restarts_max} ]; then',
        f'    say "giving up: {allocation.restarts_max} restarts without progress"',
        "  else",
        '    echo "$SLURM_JOB_ID $idle" >"$study/restarts"',
        '    say "requeueing the job"',
        '    scontrol requeue "$SLURM_JOB_ID" || say "the scheduler does not requeue it; submit it again"',
        "  fi",
        "fi",
        'exit "$code"',
    ]
