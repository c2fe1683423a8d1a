"""A study small enough for a test, and the command that runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Finished, run_process

ISOFLOP = str(Path(sys.executable).parent / "isoflop")
SMALL = """\
name: small
workflow: llm
runs_dir: {runs_dir}
base:
  model: {{seq_len: 32, layers: 1}}
  data: {{source: {text}}}
  train: {{global_batch: 4, evaluations: 2, evaluation_sequences: 8, log_every: 2, checkpoint_every: 5, steps: 10}}
sweep:
  grid: {{model.width: [16, 32]}}
analysis: {{bootstrap: 100}}
"""


@pytest.fixture(scope="session")
def isoflop() -> Callable[..., Finished]:
    """Return `run(*args, timeout_s=120)`: the command, in a process group that ends with it."""

    def run(*args: object, timeout_s: float = 120) -> Finished:
        return run_process([ISOFLOP, *map(str, args)], timeout_s)

    return run


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Return a text file of 40 kB of this project's own words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words = Path(__file__).read_text() + (Path(__file__).parent / "test_study.py").read_text()
    path.write_text((words * 10)[:40_000])
    return path


@pytest.fixture
def small(tmp_path, text) -> Path:
    """Return the path of a study of two short runs."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL.format(runs_dir=tmp_path / "runs", text=text))
    return path
