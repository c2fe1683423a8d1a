"""A Slurm that answers as it is told (executables on PATH), and a real one of four nodes on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slurm.client import Answer, Client
from tests.conftest import ROOT
from tests.workflows.conftest import isoflop, small, text  # noqa: F401  (fixtures: a study and the command)

CLUSTER = ROOT / "tests" / "slurm" / "cluster.sh"
PATIENCE_S = 90
FAKES = ROOT / "tests" / "fakes" / "slurm"


@dataclass(frozen=True)
class FakeSlurm:
    """What tests/fakes/slurm/answer keeps in its file, and a directory to work in."""

    file: Path
    here: Path

    def say(self, **behaviours: list[str]) -> None:
        """Set what each command does at its next calls; the last behaviour stays."""
        self._change("say", behaviours)

    def has(self, *jobs: dict[str, str]) -> None:
        """Set the jobs that Slurm knows."""
        self._change("jobs", list(jobs))

    def jobs(self) -> list[dict[str, str]]:
        """Return the jobs that Slurm knows."""
        return json.loads(self.file.read_text())["jobs"]

    def calls(self, command: str) -> list[list[str]]:
        """Return the arguments of each call of a command."""
        return [argv for name, *argv in json.loads(self.file.read_text())["calls"] if name == command]

    def _change(self, key: str, value: Any) -> None:
        self.file.write_text(json.dumps({**json.loads(self.file.read_text()), key: value}))


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch) -> FakeSlurm:
    """Put fake Slurm commands first on PATH."""
    fake = FakeSlurm(tmp_path / "fake-slurm.json", tmp_path / "here")
    fake.here.mkdir()
    fake.file.write_text(json.dumps({"jobs": [], "next": 7, "say": {}, "calls": []}))
    monkeypatch.setenv("FAKE_SLURM", str(fake.file))
    monkeypatch.setenv("PATH", f"{FAKES}:{os.environ['PATH']}")
    return fake


class Cluster:
    """A real Slurm of nodes n1 to n4, which SLURM_CONF names for as long as the tests run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.client = Client()

    def call(self, *argv: object) -> str:
        """Return what a command prints; it has to succeed."""
        done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def ended(self, job_id: str) -> Answer:
        """Wait for a job's end and return the controller's last word on it."""
        return self.until(lambda: (job := self.client.queued()[job_id]).state.phase == "ended" and job)

    def until(self, ready):
        """Wait until `ready()` is true and return what it was."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := ready()):
            assert time.monotonic() < deadline, self.call("squeue") + self.call("sinfo")
            time.sleep(0.1)
        return found

    def shown(self, job_id: str, key: str) -> str:
        """Return a field of `scontrol show job`."""
        words = self.call("scontrol", "--oneliner", "show", "job", job_id).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Start a real Slurm of four nodes on this machine; skip aloud where there is none, unless one is required."""
    missing = [
        name
        for name in ("slurmctld", "slurmd", "munged")
        if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    ]
    why = f"NO REAL SLURM: {', '.join(missing)} not installed" if missing else ""
    why = why or ("NO REAL SLURM: only root can start one" if os.geteuid() else "")
    if why and os.environ.get("ISOFLOP_REQUIRE_SLURM"):
        pytest.fail(why)
    if why:
        pytest.skip(f"{why}; no test of slurm/ was made on a real scheduler (`make slurm` installs one)")
    directory = tmp_path_factory.mktemp("cluster")
    before = os.environ.get("SLURM_CONF")
    try:
        subprocess.run([CLUSTER, "start", directory], check=True, timeout=PATIENCE_S)
        os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
        yield Cluster(directory)
    finally:
        subprocess.run([CLUSTER, "stop", directory], check=True, timeout=PATIENCE_S)
        os.environ.pop("SLURM_CONF", None)
        if before:
            os.environ["SLURM_CONF"] = before
