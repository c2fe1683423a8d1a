"""Shared fixtures: real MPI jobs under a time limit, and the reference data that lies beside the project."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"
SHARED = Path(os.environ.get("ISOFLOP_SHARED", ROOT.parent / "shared"))

# Oversubscribed ranks that spin starve each other; a test never measures time, so it always yields.
os.environ.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] = f"{MPIEXEC.parent}{os.pathsep}{os.environ['PATH']}"


@dataclass(frozen=True)
class Finished:
    """An ended process: exit status (negative = signal), standard output and error."""

    status: int
    stdout: str
    stderr: str


def run_process(argv: list[str], timeout_s: float = 60, env: dict[str, str] | None = None) -> Finished:
    """Run `argv` in its own process group and end the whole group when time is up."""
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        pytest.fail(f"{argv} did not end in {timeout_s} s\n{stdout}\n{stderr}")
    return Finished(process.returncode, stdout, stderr)


@pytest.fixture(scope="session")
def mpiexec() -> Callable[..., Finished]:
    """Return `run(n, *python_args, timeout_s=60, env=None)`: n ranks of `python -m mpi4py *python_args`."""

    def run(n: int, *python_args: str, timeout_s: float = 60, env: dict[str, str] | None = None) -> Finished:
        argv = [str(MPIEXEC), "-n", str(n), sys.executable, "-m", "mpi4py", *python_args]
        return run_process(argv, timeout_s, env)

    return run


@pytest.fixture(scope="session")
def gpus() -> int:
    """Return how many GPUs torch sees; a skip where it sees none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("NO GPU HERE: this check was not made")
    return torch.cuda.device_count()


@pytest.fixture(scope="session")
def faults_on_ranks(mpiexec) -> Callable[[str, int], dict[str, dict[str, str]]]:
    """Return `faults(module, ranks)`: what `tests.cases_on_ranks` found on so many ranks, which run once."""

    @cache
    def faults(module: str, ranks: int) -> dict[str, dict[str, str]]:
        ended = mpiexec(ranks, "-m", "tests.cases_on_ranks", module, timeout_s=110)
        found: dict[str, dict[str, str]] = (
            json.loads(ended.stdout) if ended.status == 0 else {"": {"?": ended.stderr}}
        )
        return found

    return faults


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return `find(name)`: a reference data file under ISOFLOP_SHARED, or a skip that says what was not tested."""

    def find(name: str) -> Path:
        path = SHARED / "data" / name
        if not path.exists():
            pytest.skip(f"REFERENCE DATA MISSING: {path} (set ISOFLOP_SHARED); this check was not made")
        return path

    return find
