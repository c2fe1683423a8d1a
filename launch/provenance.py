"""Where a result came from: code, versions, machine. Names are taken one by one, never the whole environment."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.rundir import RunDir, write_private

PACKAGES = ("isoflop", "torch", "mpi4py", "numpy", "h5py", "parsl", "pydantic")
ENVIRONMENT = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME", "OMP_NUM_THREADS")
"""Variables that may be recorded: an allow-list, so that a secret in the environment stays there."""


def collect(ranks: list[tuple[str, int]], mpi_library: str) -> dict[str, Any]:
    """Return the provenance of one attempt as JSON-able data. Reads files only, starts no process.

    `ranks` holds the host and process id of each rank, in rank order.
    """
    hosts: dict[str, list[int]] = {}
    for rank, (host, _) in enumerate(ranks):
        hosts.setdefault(host, []).append(rank)
    return {
        "time_s": time.time(),
        "argv": sys.argv,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "git_commit": git_commit(Path(__file__).resolve().parent.parent),
        "platform": platform.platform(),
        "mpi_library": mpi_library,
        "hosts": hosts,
        "pids": [pid for _, pid in ranks],
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def record(run: RunDir, attempt: int, provenance: dict[str, Any]) -> None:
    """Add one attempt's provenance to the run's `provenance.json`, which holds `{attempt: provenance}`."""
    try:
        held = json.loads(run.provenance.read_text())
    except (OSError, ValueError):
        held = {}
    write_private(run.provenance, json.dumps({**held, str(attempt): provenance}, indent=1) + "\n")


def git_commit(root: Path) -> str | None:
    """Return the commit that `root` is checked out at, None outside a checkout.

    The files are read here, since a rank must not fork: with some network drivers a forked rank dies.
    """
    try:
        head = (root / ".git" / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        loose = root / ".git" / name
        if loose.exists():
            return loose.read_text().strip()
        packed = (line.split() for line in (root / ".git" / "packed-refs").read_text().splitlines())
        return next((line[0] for line in packed if line[1:] == [name]), None)
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
