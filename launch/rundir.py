"""A run's directory: what stands where in it, who may read it, and what state its files say the run is in."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from launch.errors import LaunchError

RUN_ID = re.compile(r"[a-z0-9_][a-z0-9._-]{0,63}")
DIR_MODE, FILE_MODE = 0o700, 0o600
EXIT_SCHEMA = "isoflop-exit/1"
State = Literal["pending", "running", "done", "failed", "requeue", "interrupted"]
_STATES: dict[int, State] = {0: "done", 75: "requeue", 130: "interrupted"}


class RunBusyError(LaunchError):
    """Another process holds the lock of this run or study."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How one attempt ended, in the words of the rank that ended it (or of mpiexec's parent when none could).

    `code` is the process exit code of the contract (0 done, 1 failed, 75 asks to be requeued), `rank` the rank
    that gave the cause (-1 unknown), `step` its last finished step (-1 unknown), times are Unix seconds.
    """

    code: int
    cause: str
    rank: int
    step: int
    started_s: float
    ended_s: float
    node: str = ""
    """Where a rank was lost that left no word itself; empty when that is not known, or not what happened."""
    schema: str = EXIT_SCHEMA


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run. Nothing is created until a method says so."""

    path: Path

    @property
    def config(self) -> Path:
        """The exact configuration, `run.yaml`."""
        return self.path / "run.yaml"

    @property
    def checkpoints(self) -> Path:
        """Directory of committed checkpoints."""
        return self.path / "checkpoints"

    @property
    def provenance(self) -> Path:
        """Code, versions and machine of each attempt, `provenance.json`."""
        return self.path / "provenance.json"

    @property
    def lock(self) -> Path:
        """Held by rank 0 (flock) for as long as the run's ranks live."""
        return self.path / "lock"

    def attempt(self, number: int, suffix: str) -> Path:
        """Return `attempt-NNN.SUFFIX`."""
        return self.path / f"attempt-{number:03d}.{suffix}"

    def attempts(self) -> list[int]:
        """Return the numbers of all attempts that left any file, ascending."""
        found = (re.match(r"attempt-(\d{3,})\.", entry) for entry in os.listdir(self.path))
        return sorted({int(match[1]) for match in found if match})

    def next_attempt(self) -> int:
        """Return the number for the next attempt, from 1."""
        return max(self.attempts(), default=0) + 1

    def exit_record(self, number: int) -> ExitRecord | None:
        """Return how attempt `number` ended, None when it left no (readable) word."""
        try:
            held = json.loads(self.attempt(number, "exit.json").read_text())
            return ExitRecord(**held) if held["schema"] == EXIT_SCHEMA else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def committed_step(self) -> int:
        """Return the step of the newest checkpoint, -1 when there is none."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in self.checkpoints.glob("step-*"))
        return max((int(match[1]) for match in found if match), default=-1)

    def last_exit(self) -> ExitRecord | None:
        """Return the exit record of the last attempt, None when there is none."""
        attempts = self.attempts() if self.path.is_dir() else []
        return self.exit_record(attempts[-1]) if attempts else None

    def state(self) -> State:
        """Return the run's state as its own files tell it; no scheduler is asked."""
        if not self.path.is_dir() or not self.attempts():
            return "pending"
        record = self.last_exit()
        if record is not None:
            return _STATES.get(record.code, "failed")
        return "running" if self.is_alive() else "interrupted"

    def is_alive(self) -> bool:
        """Return whether the last attempt is at work: rank 0 holds the run's lock, mpiexec that of its output."""
        attempts = self.attempts()
        return is_locked(self.lock) or (bool(attempts) and is_locked(self.attempt(attempts[-1], "out")))


def make_private(path: Path) -> Path:
    """Create directory `path` and its missing parents for this user alone and return it.

    Raises:
        LaunchError: it cannot be created or written; the sentence says which and why.
    """
    try:
        for folder in [*reversed(path.parents), path]:
            if not folder.exists():
                folder.mkdir(mode=DIR_MODE, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}; choose another `runs_dir`") from None
    return path


def write_private(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` whole or not at all: beside it, synced, then renamed. Raises LaunchError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, FILE_MODE), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise LaunchError(f"{path}: {error.strerror}") from None


def write_exit(run: RunDir, number: int, record: ExitRecord) -> bool:
    """Commit the exit record of an attempt unless one stands already: the first cause wins.

    Returns whether this one was taken. Any number of ranks may call it at once. Raises LaunchError.
    """
    final = run.attempt(number, "exit.json")
    beside = final.with_name(f".{final.name}.{record.rank}.{os.getpid()}")
    write_private(beside, json.dumps(asdict(record)) + "\n")
    try:
        os.link(beside, final)  # unlike a rename, a link never replaces what another rank wrote
    except FileExistsError:
        return False
    except OSError as error:
        raise LaunchError(f"{final}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)
    return True


@contextmanager
def locked(path: Path, what: str, note: dict[str, Any]) -> Iterator[None]:
    """Hold the exclusive lock `path` and leave `note` (who, where, since when) in it for others to read.

    Raises:
        RunBusyError: another living process holds it; the sentence names that process.
        LaunchError: the lock's file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, FILE_MODE)
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}") from None
    with open(descriptor, "r+") as file:
        if not _lock_within(file, seconds=1.0):
            holder = file.read().strip() or "an unknown process"
            raise RunBusyError(f"{path.parent}: {what} is already being worked on by {holder}")
        file.truncate()
        file.write(json.dumps(note))
        file.flush()
        yield
        file.truncate(0)


def _lock_within(file: IO[str], seconds: float) -> bool:
    """Try for a short while, since `is_locked` in another process holds the lock for an instant."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock `path`."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
