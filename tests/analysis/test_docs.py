"""docs/metrics.md against the file that a real run leaves."""

from __future__ import annotations

import re

import h5py
import pytest

from tests.conftest import ROOT, run_process
from tests.workflows.conftest import ISOFLOP, SMALL


@pytest.mark.timeout(180)
def test_the_documentation_names_every_object_of_a_real_file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "README.md").read_text() * 10)
    study = tmp_path / "small.yaml"
    study.write_text(SMALL.format(runs_dir=tmp_path / "runs", text=text))
    run_process([ISOFLOP, "run", str(study), "--set", "sweep.grid={model.width: [16]}"], timeout_s=120)
    [path] = tmp_path.glob("runs/small/*/attempt-001.h5")
    documented = (ROOT / "docs" / "metrics.md").read_text()
    with h5py.File(path) as file:
        names = [f"/{group}/{name}" for group in ("streams", "dist") for name in file[group]]
        names += ["/meta", "/events", "/summary", *file["meta"].attrs]
        names += [*file["summary"].dtype.names, *file["streams/lr"].dtype.names, *file["events"].dtype.names]
        names += file["dist/step_time"].dtype.names
    assert len(names) > 30
    of_a_kind = ((r"^/streams/sent_bytes_(\w+)$", "/streams/sent_bytes_GROUP"), (r"_pp\d+$", "_ppK"))
    groups = [match[1] for name in names if (match := re.match(of_a_kind[0][0], name))]
    names = [re.sub(*of_a_kind[1], re.sub(*of_a_kind[0], name)) for name in names] + groups
    missing = [name for name in names if not re.search(rf"(?<![\w/]){name}(?!\w)", documented)]
    assert not missing, missing
