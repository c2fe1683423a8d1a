"""Points from metrics files, logs of other programs and exports: the same law whatever the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analysis import fit, read_table
from analysis.errors import DataError, StoreError
from analysis.store import recover
from tests.analysis.writing import writer
from tests.conftest import run_process
from tests.workflows.conftest import ISOFLOP

STEPS = range(0, 400, 10)
COLUMNS = {"x": "tokens", "L": "loss"}


def loss(step: int) -> float:
    return 9.0 * (10.0 * step) ** -0.2


def power_of(path, columns, **where):
    points = read_table(path, columns, ("x",), where=where)
    assert len(points) == len(STEPS) - 1
    return fit("power", points, bootstrap=0).params["alpha"]


def add_all(metrics):
    """A loss each step and a learning rate each third; at step 0 the model has seen nothing."""
    for step in STEPS:
        metrics.append("train_loss", step=step, tokens=10 * step, value=loss(step) if step else 11.0)
        if step % 3 == 0:
            metrics.append("lr", step=step, tokens=10 * step, value=1e-3)
    metrics.flush()


def test_a_metrics_file_is_read_while_it_is_written(tmp_path):
    columns = {"x": "tokens", "L": "train_loss"}
    with writer(tmp_path / "attempt-001.h5") as metrics:
        add_all(metrics)
        assert power_of(tmp_path / "attempt-001.h5", columns) == pytest.approx(0.2)
        assert power_of(tmp_path, columns) == pytest.approx(0.2), "a run's directory is its attempts"
        with pytest.raises(DataError, match="no column 'L_val' for N"):
            read_table(tmp_path, {"N": "L_val", "D": "tokens", "L": "train_loss"})
        metrics.set_summary(L_val=3.0)
    held = read_table(tmp_path, {"N": "L_val", "D": "tokens", "L": "train_loss"})
    assert set(held.N) == {3.0}, "the summary's fields hold for every row"


def test_a_damaged_metrics_file_is_exit_5_and_what_is_whole_is_offered(tmp_path):
    path = tmp_path / "attempt-001.h5"
    with writer(path) as metrics:
        add_all(metrics)
        for step in range(400, 3000):
            metrics.append("train_loss", step=step, tokens=10 * step, value=loss(step))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    args = ["--law", "power", "--columns", "x=tokens,L=train_loss", "--bootstrap", "0", "--json"]
    done = run_process([ISOFLOP, "fit", "--data", str(path), *args])
    assert (done.status, done.stdout) == (5, "")
    assert f"`isoflop recover {path} NEW.h5` copies what is whole" in done.stderr
    assert done.stderr.count("\n") == 1
    saved = tmp_path / "saved.h5"
    again = run_process([ISOFLOP, "recover", str(path), str(saved)])
    assert (again.status, again.stderr) == (0, "")
    done = run_process([ISOFLOP, "fit", "--data", str(saved), *args])
    assert json.loads(done.stdout)["params"]["alpha"] == pytest.approx(0.2)
    with pytest.raises(StoreError):
        recover(tmp_path / "none.h5", tmp_path / "out.h5")


def test_json_lines_may_lack_what_was_not_logged_at_that_step(tmp_path):
    path = tmp_path / "history.jsonl"
    lines = [{"_step": step, "tokens": 10 * step, "val": {"loss": loss(step)}} for step in STEPS if step]
    lines += [{"_step": step, "lr": 1e-3, "note": None} for step in STEPS]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert power_of(path, {"x": "tokens", "L": "val.loss"}) == pytest.approx(0.2)
    for text, sentence in (
        ('{"a": 1}\n[1]', r"history\.jsonl:2: a JSON object is needed"),
        ('{"a": 1}\n{', r"history\.jsonl:2: no JSON"),
        ("", "holds no rows yet"),
        ('{"tokens": 1}\n{"loss": 2}', "no row has all of tokens, loss"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=sentence):
            read_table(path, COLUMNS, ("x",))
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        read_table(tmp_path / "none.jsonl", COLUMNS, ("x",))


def test_an_export_of_weights_and_biases_has_empty_cells_and_a_plain_table_none(tmp_path):
    path = tmp_path / "export.csv"
    rows = [f"{step},{10 * step},{loss(step)!r}" for step in STEPS if step]
    path.write_text("Step,tokens,a - loss\n" + "\n".join([*rows, "400,4000,", "401,,"]))
    assert power_of(path, {"x": "tokens", "L": "a - loss"}) == pytest.approx(0.2)
    path.write_text(path.read_text().replace("Step", "row"))
    with pytest.raises(DataError, match="column 'a - loss' holds '', which is no number"):
        read_table(path, {"x": "tokens", "L": "a - loss"}, ("x",))


def test_tensorboards_scalars_are_columns_and_runs_are_told_apart(tmp_path):
    pytest.importorskip("tensorboard", reason="TENSORBOARD'S FILES WERE NOT READ: `pip install tensorboard`")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for run, size in (("small", 1e6), ("large", 1e7)):
        log = EventFileWriter(str(tmp_path / run))
        log.add_event(Event(step=0, summary=Summary(value=[Summary.Value(tag="N", simple_value=size)])))
        for step in STEPS[1:]:
            values = {"val/loss": loss(step), "tokens": 10.0 * step}
            told = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            log.add_event(Event(step=step, summary=Summary(value=told)))
        log.close()
    columns = {"x": "tokens", "L": "val/loss"}
    assert power_of(tmp_path, columns, run="large") == pytest.approx(0.2, rel=1e-6)
    [file] = (tmp_path / "small").iterdir()
    assert power_of(file, columns) == pytest.approx(0.2, rel=1e-6)
    both = read_table(tmp_path, {"N": "N", "D": "tokens", "L": "val/loss", "run": "run"})
    assert len(both) == 2 * (len(STEPS) - 1)
    np.testing.assert_array_equal(both.N == 1e7, np.array(both.runs) == "large")
