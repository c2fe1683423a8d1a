"""One small run of two ranks, broken in a way that is data, and the same run undisturbed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.attempt import Command, run_attempt
from launch.rundir import ExitRecord, RunDir
from slurm.strict_yaml import dumps
from tests.workflows.llm.conftest import Outcome, config_of, outcome, words  # noqa: F401  (fixtures)

RANKS, STEPS, CHECKPOINT_EVERY = 2, 12, 5
SECRET = "planted-secret"


@dataclass(frozen=True)
class Faulty:
    """A run of the language-model program with faults in it: each a (kind, rank, step) of tests/faults/faulty.py."""

    run: RunDir

    def attempt(self, stop: threading.Event | None = None) -> ExitRecord:
        """Run an attempt to its end. A fault happens once, so the next attempt does not meet it again."""
        command = Command("tests.faults.faulty", RANKS, oversubscribed=True)
        return run_attempt(self.run, command, stop or threading.Event())

    def fired(self) -> int:
        """Return how many faults happened."""
        return len(list(self.run.path.glob("fired-*")))

    def since_fault_s(self) -> float:
        """Return the seconds since the first fault."""
        return time.time() - (self.run.path / "fired-0").stat().st_mtime

    def living(self) -> list[int]:
        """Return the ranks of the last attempt that still live, once they had the time to end."""
        held = json.loads(self.run.provenance.read_text())
        pids = held[str(max(self.run.attempts()))]["pids"]
        deadline_s = time.monotonic() + 10
        while (left := [pid for pid in pids if _lives(pid)]) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return left

    def outcome(self) -> Outcome:
        """Return the rows and the last state."""
        return outcome(self.run.path)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="session")
def faulty(tmp_path_factory, config_of) -> Callable[..., Faulty]:  # noqa: F811
    """Return `make(*faults, **override)`: a new run with these (kind, rank, step) and sections of its configuration."""

    def make(*faults: tuple[str, int, int], **override: dict[str, Any]) -> Faulty:
        run = RunDir(tmp_path_factory.mktemp("faulty"))
        held = {"config": config_of(**override), "cache_dir": str(run.path / "cache")}
        run.config.write_text(dumps(held))
        keys = ("kind", "rank", "step")
        listed = [dict(zip(keys, fault, strict=True)) for fault in faults]
        (run.path / "faults.json").write_text(json.dumps(listed))
        return Faulty(run)

    return make


@pytest.fixture(scope="session")
def undisturbed(faulty) -> Faulty:
    """The run from start to end, in an environment that holds a secret."""
    whole = faulty()
    os.environ["WANDB_API_KEY"] = SECRET
    try:
        record = whole.attempt()
    finally:
        del os.environ["WANDB_API_KEY"]
    assert (record.code, record.cause) == (0, "finished")
    return whole
