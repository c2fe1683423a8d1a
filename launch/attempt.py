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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launch.errors import LaunchError
from launch.lifeline import VARIABLE, Lifelines
from launch.rundir import FILE_MODE, ExitRecord, RunDir, write_exit

INTERRUPTED = 130
GRACE_S = 30.0
WATCH_S = 0.1
TAIL_BYTES = 4096
_LOST = re.compile(r"PID \d+ RUNNING AT (\S+)\s.*?\(signal (\d+)\)", re.DOTALL)  # MPICH's mpiexec
_SPEAKS = re.compile(r"^(?!\s|=|Abort\(|YOUR APP|This typ|Please see)(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a program: its module, the number of ranks, threads a rank and the launcher."""

    module: str
    ranks: int
    threads: int = 1
    launcher: str = "mpiexec"
    oversubscribed: bool = False
    """More ranks and threads than cores: waiting ranks must then yield instead of spin."""

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


def run_attempt(run: RunDir, command: Command, stop: threading.Event) -> ExitRecord:
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
        status = _wait(process, stop, lines)
    stopped = stop.is_set() and status != 0
    cause, rank = (
        ("the driver was interrupted", -1)
        if stopped
        else explain(status, _tail(out) + _tail(err), lines.first_gone)
    )
    code = INTERRUPTED if stopped else 1
    write_exit(run, number, ExitRecord(code, cause, rank, -1, started_s, time.time()))
    record = run.exit_record(number)
    if record is None:
        raise LaunchError(f"{run.attempt(number, 'exit.json')}: could not be written or read back")
    return record


def explain(status: int, tail: str, first_gone: int) -> tuple[str, int]:
    """Return cause and rank (-1 unknown) of a job that ended with `status` and left no record of its own.

    `tail` is the end of its output and error streams, `first_gone` the rank that ended first. MPICH's own
    word is not taken for that: it often names a process that it ended itself while it cleaned up.
    """
    if lost := _LOST.search(tail):
        host, number = lost[1], int(lost[2])
        who = f"rank {first_gone}" if first_gone >= 0 else "a rank"
        return f"{who} on {host} was ended by signal {number} ({signal.Signals(number).name})", first_gone
    if status == 0:
        return "mpiexec ended with status 0, but no rank recorded success", -1
    what = f"mpiexec was ended by signal {-status}" if status < 0 else f"mpiexec ended with status {status}"
    spoken = _SPEAKS.findall(tail)
    return what + (f": {spoken[-1].strip()}" if spoken else ""), -1


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


def _wait(process: subprocess.Popen[bytes], stop: threading.Event, lines: Lifelines) -> int:
    """Wait for the process; once `stop` is set, ask it to end, then insist."""
    while not stop.is_set():
        if (status := process.poll()) is not None:
            lines.watch(0)
            return status
        lines.watch(WATCH_S)
    process.terminate()  # MPICH's mpiexec passes TERM on to every rank
    try:
        return process.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, FILE_MODE), "wb")


def _tail(path: Path) -> str:
    """Return the last few KiB of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
