"""The parent of one MPI job: starts the ranks, waits, and gives their end in words when they could not."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from launch.errors import LaunchError
from launch.lifeline import VARIABLE, Lifelines
from launch.rundir import FILE_MODE, ExitRecord, RunDir, write_exit

INTERRUPTED, REQUEUE = 130, 75
GRACE_S = 30.0
WATCH_S = 0.1
TAIL_BYTES = 4096
_LOST = re.compile(r"PID \d+ RUNNING AT (\S+)\s.*?\(signal (\d+)\)", re.DOTALL)  # MPICH's mpiexec
_KILLED = re.compile(
    r"^srun: error: (\S+): tasks? (\d+)\S*: ([A-Z][a-z ]+?)(?: \(core dumped\))?$", re.MULTILINE
)
_STEP_LOST = (  # what Slurm says of a step that it ended itself; a group names the node
    (re.compile(r"srun: error: Node failure on (\S+)"), "node {0} was lost"),
    (re.compile(r"Task launch .*failed on node (\S+):"), "node {0} did not start its ranks"),
    (
        re.compile(r"oom[-_]kill|out of memory|exceeded (?:job )?memory limit", re.IGNORECASE),
        "a rank ran out of memory",
    ),
    (re.compile(r"CANCELLED AT \S+ DUE TO TIME LIMIT"), "the walltime was over"),
    (re.compile(r"CANCELLED AT \S+ DUE TO NODE FAILURE"), "a node was lost"),
    (re.compile(r"CANCELLED AT \S+ DUE TO PREEMPTION"), "its nodes went to another job"),
)
_TAKEN = re.compile(r"^(a )?node .*(was lost|did not start)|^the walltime was over|^its nodes went")
_CANCELLED = re.compile(r"CANCELLED AT \S+")
_SPEAKS = re.compile(r"^(?!\s|=|Abort\(|YOUR APP|This typ|Please see)(\S.*)$", re.MULTILINE)


class Starts(Protocol):
    """How to start the ranks of an attempt."""

    @property
    def ranks(self) -> int:
        """Number of ranks."""

    @property
    def stop_signal(self) -> signal.Signals:
        """What asks the ranks to commit and stop when the launcher gets it."""

    def argv(self, run: RunDir, attempt: int) -> list[str]:
        """Return the argument vector; no shell ever sees it."""

    def environment(self) -> dict[str, str]:
        """Return the environment of the launcher and so of the ranks."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a program: its module, the number of ranks, threads a rank and the launcher."""

    module: str
    ranks: int
    threads: int = 1
    launcher: str = "mpiexec"
    oversubscribed: bool = False
    """More ranks and threads than cores: waiting ranks must then yield instead of spin."""
    stop_signal: signal.Signals = signal.SIGTERM

    def argv(self, run: RunDir, attempt: int) -> list[str]:
        """Return the argument vector; no shell ever sees it."""
        return [
            *(find_launcher(self.launcher), "-n", str(self.ranks)),
            *(sys.executable, "-m", "mpi4py", "-m", self.module, str(run.path), "--attempt", str(attempt)),
        ]

    def environment(self) -> dict[str, str]:
        """Return the ranks' environment: this one's, with the thread count and the world size to check."""
        own = {"OMP_NUM_THREADS": str(self.threads), "ISOFLOP_WORLD_SIZE": str(self.ranks)}
        if self.oversubscribed:
            own["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"
        return {**os.environ, **own}


@dataclass(frozen=True, slots=True)
class Step:
    """The same as a step of the Slurm allocation that this process is in."""

    module: str
    ranks: int
    options: tuple[str, ...]
    """Of srun: sizes, bindings, environment."""
    stop_signal: signal.Signals = signal.SIGUSR1
    """Srun passes it on; TERM makes it kill the ranks."""

    def argv(self, run: RunDir, attempt: int) -> list[str]:
        """Return the argument vector; no shell ever sees it."""
        python = (sys.executable, "-m", "mpi4py", "-m", self.module)
        return [*("srun", *self.options), *python, str(run.path), "--attempt", str(attempt)]

    def environment(self) -> dict[str, str]:
        """Return srun's environment: this one's, with the world size to check."""
        return {**os.environ, "ISOFLOP_WORLD_SIZE": str(self.ranks)}


def find_launcher(name: str) -> str:
    """Return the path of the launcher: the one installed beside this Python before the one on PATH.

    Raises:
        LaunchError: there is none.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise LaunchError(f"launcher '{name}' not found: `pip install mpich`, or load the site's MPI module")
    return found


def run_attempt(run: RunDir, command: Starts, stop: threading.Event) -> ExitRecord:
    """Run one attempt to its end and return how it ended, which is always on disk as well.

    When `stop` is set the ranks are ended (TERM, then KILL) and the record says interrupted. A run whose
    ranks outlived an earlier driver is not started again: its end is awaited and returned.
    """
    if run.is_alive() and (adopted := _await_orphan(run, stop)):
        return adopted
    number = run.next_attempt()
    started_s = time.time()
    out, err = run.attempt(number, "out"), run.attempt(number, "err")
    with _private(out) as stdout, _private(err) as stderr, closing(Lifelines(command.ranks)) as lines:
        fcntl.flock(stdout, fcntl.LOCK_EX)  # mpiexec inherits it: held for as long as anyone can still write
        process = subprocess.Popen(
            command.argv(run, number),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**command.environment(), VARIABLE: lines.path},
            start_new_session=True,  # Ctrl-C reaches the driver, which ends its runs in order
        )
        status = _wait(process, stop, lines, command.stop_signal)
    stopped = stop.is_set() and status != 0
    cause, rank, node = (
        ("the driver was interrupted", -1, "")
        if stopped
        else explain(status, _tail(out) + _tail(err), lines.first_gone)
    )
    taken = _TAKEN.search(cause) is not None  # not the run's fault: it goes on elsewhere
    code = INTERRUPTED if stopped else REQUEUE if taken else 1
    step = run.committed_step() if taken else -1
    write_exit(run, number, ExitRecord(code, cause, rank, step, started_s, time.time(), node))
    record = run.exit_record(number)
    if record is None:
        raise LaunchError(f"{run.attempt(number, 'exit.json')}: could not be written or read back")
    return record


def explain(status: int, tail: str, first_gone: int) -> tuple[str, int, str]:
    """Return cause, rank (-1 unknown) and node (empty unknown) of a job that left no record of its own.

    `tail` is the end of its output and error streams, `first_gone` the rank that ended first. MPICH's own
    word is not taken for that: it often names a process that it ended itself while it cleaned up.
    """
    who = f"rank {first_gone}" if first_gone >= 0 else "a rank"
    for pattern, sentence in _STEP_LOST:
        if said := pattern.search(tail):
            return sentence.format(*said.groups()), -1, "".join(said.groups())
    if killed := _KILLED.search(tail):
        node, rank, how = killed[1], int(killed[2]), killed[3]
        return f"rank {rank} on {node} was ended by a signal ({how})", rank, node
    if _CANCELLED.search(tail):
        return "its step was ended from outside, as by scancel", -1, ""
    if lost := _LOST.search(tail):
        host, number = lost[1], int(lost[2])
        return (
            f"{who} on {host} was ended by signal {number} ({signal.Signals(number).name})",
            first_gone,
            host,
        )
    if status == 0:
        return "the launcher ended with status 0, but no rank recorded success", -1, ""
    what = (
        f"the launcher was ended by signal {-status}"
        if status < 0
        else f"the launcher ended with status {status}"
    )
    spoken = _SPEAKS.findall(tail)
    return what + (f": {spoken[-1].strip()}" if spoken else ""), -1, ""


def _await_orphan(run: RunDir, stop: threading.Event) -> ExitRecord | None:
    """Wait for ranks that an earlier driver left behind; None when they ended without a word that is new."""
    told = (
        run.last_exit()
    )  # of an attempt whose processes are still on their way out, and which counted already
    while run.is_alive() and not stop.wait(0.5):
        pass
    if stop.is_set():
        return ExitRecord(INTERRUPTED, "the driver was interrupted", -1, -1, time.time(), time.time())
    record = run.last_exit()
    return None if record == told else record


def _wait(
    process: subprocess.Popen[bytes], stop: threading.Event, lines: Lifelines, number: signal.Signals
) -> int:
    """Wait for the process; once `stop` is set, ask it to end, then insist."""
    while not stop.is_set():
        if (status := process.poll()) is not None:
            lines.watch(0)
            return status
        lines.watch(WATCH_S)
    for gentle in dict.fromkeys((number, signal.SIGTERM)):
        process.send_signal(gentle)  # the launcher passes it on to every rank
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=GRACE_S)
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, FILE_MODE), "wb")


def _tail(path: Path) -> str:
    """Return the last few KiB of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
