"""One small run in many variants: on 1, 2 and 4 ranks, in pieces, interrupted, over another backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.store import read_run
from launch.rundir import RunDir
from slurm.strict_yaml import dumps
from tests.launch import alone
from workflows.llm.config import LlmConfig

STREAMS = ("train_loss", "val_loss", "grad_norm", "lr")
Override = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What a run left: the rows of its streams, and the arrays of its last checkpoint."""

    rows: dict[str, np.ndarray]
    step: int
    arrays: dict[str, np.ndarray] = field(repr=False)


def outcome(run: Path) -> Outcome:
    metrics, saved = read_run(run), alone.load(RunDir(run).checkpoints)
    return Outcome({name: metrics.streams[name] for name in STREAMS}, saved.step, saved.arrays)


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """A text of 8 kB of this project's own words."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_bytes((Path(__file__).parent / "test_program.py").read_bytes()[:8000])
    return path


@pytest.fixture(scope="session")
def config_of(words) -> Callable[..., dict[str, Any]]:
    """Return `make(section={key: value}, ...)`: 12 steps in fp64, a checkpoint every 5."""

    def make(**override: dict[str, Any]) -> dict[str, Any]:
        sections: Override = {
            "model": {"width": 32, "layers": 1, "seq_len": 16, "head_width": 8, "kv_heads": 2},
            "data": {"source": str(words)},
            "train": {
                "steps": 12,
                "global_batch": 4,
                "evaluations": 3,
                "evaluation_sequences": 6,
                "log_every": 1,
                "checkpoint_every": 5,
                "async_checkpoint": False,
                "dtype": "fp64",
            },
        }
        for name, values in override.items():
            sections[name] = {**sections.get(name, {}), **values}
        return LlmConfig.model_validate(sections).model_dump(mode="json")

    return make


@pytest.fixture
def start_program(tmp_path, config_of, mpiexec):
    """Return `start(ranks, *killed, cache_dir=..., **override) -> (finished, RunDir)`: the program as it is started."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir(mode=0o700)

    def start(
        ranks: int,
        *killed: int,
        cache_dir: Path = tmp_path / "cache",
        timeout_s: float = 60,
        **override: dict[str, Any],
    ):
        held = {"config": config_of(**override), "cache_dir": str(cache_dir)}
        run.config.write_text(dumps(held))
        faults = [dict(zip(("rank", "step"), killed, strict=True), kind="kill")] if killed else []
        (run.path / "faults.json").write_text(json.dumps(faults))
        module = "tests.faults.faulty" if killed else "workflows.llm.program"
        return mpiexec(ranks, "-m", module, str(run.path), timeout_s=timeout_s), run

    return start


@pytest.fixture(scope="session")
def trained(tmp_path_factory, config_of, mpiexec) -> dict[tuple[int, str], Outcome]:
    """{(ranks, variant): outcome}, made by one job a world size."""
    place = tmp_path_factory.mktemp("trained")
    variants = {
        "whole": [(config_of(), None)],
        "pieces": [(config_of(parallel={"microbatch": 1}), None)],
        "gloo": [(config_of(parallel={"backend": "gloo"}), None)],
        "interrupted": [(config_of(), 9), (config_of(), 12), (config_of(), None)],
        "single": [(config_of(train={"dtype": "fp32"}), None)],
        "moved": [(config_of(), 9)],
    }
    for ranks in (1, 2, 4):
        cases = [
            {
                "run": str(place / ("moved" if name == "moved" else f"{ranks}-{name}")),
                "config": config,
                "cache_dir": str(place / "cache"),
                "stop_before": None if name == "moved" and ranks > 1 else stop_before,
            }
            for name, parts in variants.items()
            for config, stop_before in parts
            if ranks < 4 or name in ("whole", "pieces", "gloo")
        ]
        (place / "cases.json").write_text(json.dumps(cases))
        ended = mpiexec(ranks, "-m", "tests.workflows.llm.many_runs", str(place / "cases.json"))
        assert ended.status == 0, ended.stderr
    found = {
        (int(path.name[0]), path.name[2:]): outcome(path) for path in place.glob("[124]-*") if path.is_dir()
    }
    return {**found, (2, "moved"): outcome(place / "moved")}
