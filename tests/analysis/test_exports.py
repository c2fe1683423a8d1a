"""Metrics as other programs keep them: what they read there is what was measured, to the last bit."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from analysis import exports, read_table
from analysis.errors import DataError
from analysis.sources import event_rows
from tests.analysis.writing import writer

STEPS = range(0, 60, 10)
NAMES = ("small", "large")


def loss(step: int, size: float) -> float:
    return 1 / 3 + 9.0 * (10.0 * step + 1) ** -0.2 * size


def written(directory: Path, name: str, size: float, attempt: int = 1, restored: int = 0) -> Path:
    """Add an attempt to a run: a loss each step after the one restored, a learning rate at every other."""
    run = directory / "widths" / name
    run.mkdir(parents=True, exist_ok=True)
    meta = {"config": json.dumps({"model": {"width": 16, "tied": True}, "note": name})}
    with writer(run / f"attempt-{attempt:03d}.h5", attempt, restored, **meta) as metrics:
        for step in STEPS:
            if step > restored or not restored:
                metrics.append("train_loss", step=step, tokens=10 * step, value=loss(step, size * attempt))
                if step % 20 == 0:
                    metrics.append("lr", step=step, tokens=10 * step, value=1e-3 / (step + 3))
        metrics.set_summary(L_val=loss(100, size), wall_s=12.25)
    return run


@pytest.fixture
def runs(tmp_path) -> list[exports.RunRecord]:
    """Two runs, the second of two attempts, of which the later went on from step 20."""
    made = [written(tmp_path, name, size) for name, size in zip(NAMES, (1.0, 2.0), strict=True)]
    written(tmp_path, "large", 2.0, attempt=2, restored=20)
    return [exports.record(run, "done") for run in made]


def measured(run: exports.RunRecord) -> dict[str, dict[int, float]]:
    """Return each stream's value at each step."""
    return {
        name: dict(zip(rows["step"].tolist(), rows["value"].tolist(), strict=True))
        for name, rows in run.metrics.streams.items()
    }


def test_rows_of_a_later_attempt_have_its_own_clock(runs):
    small, large = (run.metrics for run in runs)
    for metrics in (small, large):
        assert all(len(metrics.clocks[name]) == len(rows) for name, rows in metrics.streams.items())
        assert (np.diff(metrics.clocks["train_loss"]) >= 0).all()
    directory = large.meta["started_unix_s"]
    assert (large.clocks["train_loss"][3:] >= directory).all()
    assert (large.clocks["train_loss"][:3] < directory).all()


def test_tables_hold_every_digit_and_are_read_again(runs, tmp_path):
    files = exports.export(runs, "csv", tmp_path / "out")
    assert [path.name for path in files] == ["steps.csv", "runs.csv"]
    for run in runs:
        columns = {"x": "tokens", "L": "train_loss"}
        points = read_table(files[0], columns, ("x",), where={"run": run.run_id})
        known = {step: value for step, value in measured(run)["train_loss"].items() if step}
        assert dict(zip((points.x["x"] / 10).astype(int).tolist(), points.y.tolist(), strict=True)) == known
    whole = read_table(files[1], {"N": "wall_s", "D": "L_val", "L": "L_val", "run": "run"})
    assert whole.runs == NAMES
    assert whole.y.tolist() == [run.metrics.summary["L_val"] for run in runs]
    assert '"16"' not in files[1].read_text()
    assert "model.width" in files[1].read_text().splitlines()[0].split(",")


def test_mlflows_store_is_text_that_says_the_same(runs, tmp_path):
    [root] = exports.export(runs, "mlflow", tmp_path / "out")
    [experiment] = [path for path in root.iterdir() if path.is_dir()]
    assert json.loads((experiment / "meta.yaml").read_text())["name"] == "widths"
    assert experiment.name.isdigit()
    for run in runs:
        [folder] = [
            path for path in experiment.iterdir() if path.is_dir() and _meta(path)["run_name"] == run.run_id
        ]
        meta = _meta(folder)
        assert (meta["run_id"], meta["experiment_id"], meta["status"]) == (folder.name, experiment.name, 3)
        assert meta["start_time"] <= meta["end_time"]
        for name, values in measured(run).items():
            rows = [line.split(" ") for line in (folder / "metrics" / name).read_text().splitlines()]
            assert {int(step): float(value) for _, value, step in rows} == values
            assert [int(ms) for ms, _, _ in rows] == [round(1000 * t) for t in run.metrics.clocks[name]]
        assert (folder / "params" / "model.width").read_text() == "16"
        assert float((folder / "metrics" / "summary.wall_s").read_text().split(" ")[1]) == 12.25


def _meta(folder: Path) -> dict:
    return json.loads((folder / "meta.yaml").read_text())


def test_mlflow_itself_reads_the_store(runs, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="MLFLOW DID NOT READ ITS STORE: `pip install mlflow-skinny`")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    [root] = exports.export(runs, "mlflow", tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=root.as_uri())
        experiment = client.get_experiment_by_name("widths")
        found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        assert found.keys() == set(NAMES)
        for run in runs:
            theirs = found[run.run_id]
            assert theirs.info.status == "FINISHED"
            assert theirs.data.params["note"] == run.run_id
            for name, values in measured(run).items():
                history = client.get_metric_history(theirs.info.run_id, name)
                assert {point.step: point.value for point in history} == values


def test_tensorboards_files_say_the_same(runs, tmp_path):
    pytest.importorskip(
        "tensorboard", reason="TENSORBOARD'S FILES WERE NOT WRITTEN: `pip install tensorboard`"
    )
    folders = exports.export(runs, "tensorboard", tmp_path / "out")
    assert [path.name for path in folders] == list(NAMES)
    table = event_rows(tmp_path / "out")
    at = {name: table.header.index(name) for name in ("run", "step", "train_loss", "lr", "summary/L_val")}
    for run in runs:
        mine = [cells for _, cells in table.rows if cells[at["run"]] == run.run_id]
        for name, values in measured(run).items():
            told = {int(cells[at["step"]]): float(cells[at[name]]) for cells in mine if cells[at[name]]}
            assert told == values
        assert {float(cells[at["summary/L_val"]]) for cells in mine} == {run.metrics.summary["L_val"]}


def test_weights_and_biases_keeps_offline_what_it_is_told(runs, tmp_path):
    pytest.importorskip("wandb", reason="NO OFFLINE RUN OF WEIGHTS & BIASES: `pip install wandb`")
    folders = exports.export(runs, "wandb", tmp_path / "out")
    assert [path.name.rpartition("-")[2] for path in folders] == list(NAMES)
    for run, folder in zip(runs, folders, strict=True):
        assert _history(next(folder.glob("*.wandb"))) == measured(run)


def _history(path: Path) -> dict[str, dict[int, float]]:
    """Return each metric's value at each step from an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, dict[int, float]] = {"train_loss": {}, "lr": {}}
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
        for name in found.keys() & row.keys():
            found[name][int(row["_step"])] = json.loads(row[name])
    return found


def _records(held: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log: blocks of 32 KiB, in which a record is one piece or several."""
    assert held[:4] == b":W&B"
    at, whole, block = 7, b"", 32768
    while at + 7 <= len(held):
        left = block - at % block
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(held[at + 4 : at + 6], "little"), held[at + 6]
        whole += held[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


@pytest.mark.parametrize("to", ["tensorboard", "wandb"])
def test_a_program_that_is_not_installed_is_one_sentence(runs, tmp_path, to, monkeypatch):
    monkeypatch.setitem(sys.modules, to, None)
    monkeypatch.setitem(sys.modules, f"{to}.compat.proto.event_pb2", None)
    extra = {"tensorboard": "events", "wandb": "wandb"}[to]
    with pytest.raises(
        exports.MissingPackageError, match=rf"needs `pip install isoflop\[{extra}\]`$"
    ) as caught:
        exports.export(runs, to, tmp_path / "out")
    assert caught.value.exit_code == 2


def test_what_cannot_be_written_is_refused_and_nothing_is_overwritten(runs, tmp_path):
    with pytest.raises(DataError, match=r"^export: --to excel; there is csv, mlflow, tensorboard, wandb$"):
        exports.export(runs, "excel", tmp_path / "out")
    with pytest.raises(DataError, match=r"^export: no run has metrics yet$"):
        exports.export([], "csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(DataError, match=r"out: holds something already; give another --out$"):
        exports.export(runs, "csv", tmp_path / "out")
    with pytest.raises(DataError, match=r"mine: cannot be written \(Not a directory\)$"):
        exports.export(runs, "csv", tmp_path / "out" / "mine")
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_values_that_are_no_number_are_told_as_they_are(tmp_path):
    run = tmp_path / "widths" / "diverged"
    run.mkdir(parents=True)
    with writer(run / "attempt-001.h5") as metrics:
        metrics.append("train_loss", step=1, tokens=10, value=math.nan)
    record = exports.record(run, "failed")
    [table, _] = exports.export([record], "csv", tmp_path / "out")
    assert "nan" in table.read_text()
    [root] = exports.export([record], "mlflow", tmp_path / "store")
    [metric] = root.rglob("metrics/train_loss")
    assert metric.read_text().split(" ")[1] == "nan"
    assert json.loads(next(root.glob("*/*/meta.yaml")).read_text())["status"] == 4
