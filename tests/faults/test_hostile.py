"""Files that somebody else wrote are data: nothing in them is executed."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from launch.errors import CheckpointError
from tests.conftest import ROOT
from tests.launch import alone

PACKAGES = ("analysis", "launch", "mpi_ops", "slurm", "workflows")
READERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["index.json", "data-00000.bin"])
def test_a_pickle_is_no_checkpoint_and_is_not_executed(tmp_path, file):
    pwned = tmp_path / "pwned"
    place = alone.save(tmp_path / "checkpoints", 1, {"x": np.arange(100)}, {})
    length = (place / file).stat().st_size  # as long as it should be, so that it is looked at
    (place / file).write_bytes(pickle.dumps(Bomb(pwned)).ljust(length, b"\0"))
    with pytest.raises(CheckpointError, match=file):
        alone.load(tmp_path / "checkpoints")
    assert not pwned.exists()
    pickle.loads((place / file).read_bytes())
    assert pwned.exists(), "this is what reading it as a pickle does"


def test_no_code_of_the_suite_reads_pickles():
    found = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            unsafe = isinstance(node, ast.keyword) and (
                (node.arg == "allow_pickle" and getattr(node.value, "value", True))
                or (node.arg == "weights_only" and not getattr(node.value, "value", False))
            )
            if unsafe or {name.partition(".")[0] for name in names} & READERS:
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                arrays_alone = "allow_pickle" in {keyword.arg for keyword in node.keywords}
                if ast.unparse(node.func) == "torch.load" or not arrays_alone:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
