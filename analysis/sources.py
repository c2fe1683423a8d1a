"""Rows of files that are no plain table: this suite's metrics, JSON lines, and TensorBoard's event files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import DataError
from analysis.store import AttemptMetrics, RunMetrics, read_attempt, read_run

METRICS_COLUMNS = {"N": "N_total", "D": "tokens", "L": "val_loss"}
"""Where a metrics file holds the inputs and the outcome of a law of the loss."""
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Rows:
    """A header, and the cells of each row with its number in the file."""

    header: list[str]
    rows: list[tuple[int, list[str]]]
    sparse: bool = False
    """Whether a row may lack some columns: programs log losses and evaluations at different steps."""


def is_metrics(path: Path) -> bool:
    """Return whether this is a metrics file, or the directory of a run."""
    return path.suffix == ".h5" or (path.is_dir() and any(path.glob("attempt-*.h5")))


def is_events(path: Path) -> bool:
    """Return whether this is an event file of TensorBoard's, or a directory that holds some."""
    return "tfevents" in path.name or (path.is_dir() and any(path.rglob("*tfevents*")))


def metrics_rows(path: Path) -> Rows:
    """Return a row a step, a column a stream, beside `step`, `tokens`, `time` and the fields of the summary.

    The file is read as it stands: its run may still write it. A model that has seen no token is no observation.

    Raises:
        StoreError: the file is damaged, or none of ours.
    """
    held = read_run(path) if path.is_dir() else read_attempt(path)
    return _rows(path, ((row["step"], row) for row in step_rows(held) if row["tokens"] > 0))


def step_rows(held: RunMetrics | AttemptMetrics) -> list[dict[str, Any]]:
    """Return a row a step: the summary's fields, `step`, `tokens`, `time`, and the streams that have a value there."""
    steps: dict[int, dict[str, Any]] = {}
    for name, table in held.streams.items():
        for step, tokens, time, value in table.tolist():
            row = steps.setdefault(step, {**held.summary, "step": step, "tokens": tokens, "time": time})
            row[name] = value
    return [steps[step] for step in sorted(steps)]


def json_rows(path: Path) -> Rows:
    """Return a row a line, each a JSON object; keys of nested objects are joined by dots.

    Raises:
        DataError: a line that is no JSON object.
    """
    return _rows(path, ((number, dict(flat(one))) for number, one in _objects(path)))


def event_rows(path: Path) -> Rows:
    """Return a row a step of every run below `path`, a column a scalar's tag, beside `step` and `run` (its directory).

    A tag that a run has written once, such as its size, holds in all rows of the run.

    Raises:
        DataError: the package tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise DataError(f"{path}: reading TensorBoard's files needs `pip install isoflop[events]`") from None
    found: list[dict[str, Any]] = []
    files = [path] if path.is_file() else sorted(path.rglob("*tfevents*"))
    for place in [path] if path.is_file() else sorted({file.parent for file in files}):
        run = EventAccumulator(str(place), {"scalars": 0, "tensors": 0}).Reload()
        kept = {tag: [(e.step, e.value) for e in run.Scalars(tag)] for tag in run.Tags()["scalars"]}
        for tag in run.Tags()["tensors"]:
            kept[tag] = [(e.step, float(make_ndarray(e.tensor_proto))) for e in run.Tensors(tag)]
        once = {tag: rows[0][1] for tag, rows in kept.items() if len(rows) == 1}
        steps: dict[int, dict[str, Any]] = {}
        for tag, rows in kept.items():
            for step, value in rows:
                steps.setdefault(step, {**once, "step": step, "run": place.name})[tag] = value
        found += [steps[step] for step in sorted(steps)]
    return _rows(path, enumerate(found, 1))


def _objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    one = json.loads(line)
                    if not isinstance(one, dict):
                        raise DataError(f"{path}:{number}: a JSON object is needed, with a key a column")
                    yield number, one
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}:{number}: no JSON ({error})") from None


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings that are something, under their keys joined by dots."""
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _rows(path: Path, records: Iterable[tuple[int, Mapping[str, Any]]]) -> Rows:
    kept = list(records)
    header = list(dict.fromkeys(name for _, record in kept for name in record))
    if not header:
        raise DataError(f"{path}: holds no rows yet")
    return Rows(header, [(n, [str(record.get(name, "")) for name in header]) for n, record in kept], True)
