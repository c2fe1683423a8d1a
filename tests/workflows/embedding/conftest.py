"""The embedding program on real ranks, as a study starts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest

from launch.rundir import RunDir
from slurm.strict_yaml import dumps
from tests.conftest import Finished
from workflows.embedding.config import EmbedConfig
from workflows.embedding.workflow import prepare


@pytest.fixture(scope="session")
def embed(mpiexec, tmp_path_factory) -> Callable[..., tuple[Finished, RunDir]]:
    """Return `run(ranks, config, *killed, into=None)`: the program on new or given run directory."""
    cache = tmp_path_factory.mktemp("cache")

    def run(ranks: int, config: dict[str, Any], *killed: int, into: RunDir | None = None):
        directory = into or RunDir(tmp_path_factory.mktemp("run"))
        wanted = EmbedConfig.model_validate(config)
        prepare(wanted, cache)
        held = {"config": wanted.model_dump(mode="json"), "cache_dir": str(cache)}
        directory.config.write_text(dumps(held))
        name = "tests.workflows.embedding.killed_at" if killed else "workflows.embedding.program"
        return mpiexec(
            ranks, "-m", name, str(directory.path), *(str(int(each)) for each in killed), timeout_s=400
        ), directory

    return run


def vectors(run: RunDir) -> np.ndarray:
    with h5py.File(run.path / "vectors.h5", "r") as file:
        return file["vectors"][:]
