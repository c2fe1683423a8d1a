"""MLflow's file store: `mlflow ui --backend-store-uri OUT` shows the runs. It is plain text; no package is needed.

A study is an experiment. A run has a file for each metric, of lines `unix-ms value step`, and one for each parameter.
What it is called follows from the study's and the run's names, so that a second export has the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.exports import RunRecord

STATUS = {"running": 1, "requeue": 2, "pending": 2, "done": 3, "failed": 4, "interrupted": 5}
"""RUNNING, SCHEDULED, FINISHED, FAILED, KILLED."""
LOCAL = 4
"""The type of a source that is no notebook and no project."""
LONGEST_VALUE = 6000
"""Characters that MLflow takes of a parameter."""


def write(runs: Sequence[RunRecord], out: Path) -> list[Path]:
    """Write the store and return its root."""
    for study in dict.fromkeys(run.study for run in runs):
        spans = [run.span_s for run in runs if run.study == study]
        experiment = {
            "experiment_id": _experiment_id(study),
            "name": study,
            "artifact_location": _folder(out / _experiment_id(study)).resolve().as_uri(),
            "lifecycle_stage": "active",
            "creation_time": _ms(min(first for first, _ in spans)),
            "last_update_time": _ms(max(last for _, last in spans)),
        }
        _meta(out / _experiment_id(study), experiment)
    for run in runs:
        _run(run, out)
    return [out]


def _run(run: RunRecord, out: Path) -> None:
    """Write one run: its meta.yaml, metrics, parameters and tags."""
    run_id = hashlib.sha256(f"{run.study}/{run.run_id}".encode()).hexdigest()[:32]
    root = _folder(out / _experiment_id(run.study) / run_id)
    first_s, last_s = run.span_s
    info = {
        "run_id": run_id,
        "run_uuid": run_id,
        "run_name": run.run_id,
        "experiment_id": _experiment_id(run.study),
        "user_id": "",
        "status": STATUS[run.state],
        "start_time": _ms(first_s),
        "end_time": None if run.state == "running" else _ms(last_s),
        "lifecycle_stage": "active",
        "artifact_uri": (_folder(root / "artifacts")).resolve().as_uri(),
        "source_type": LOCAL,
        "source_name": "",
        "source_version": "",
        "entry_point_name": "",
        "tags": [],
    }
    _meta(root, info)
    for name, rows in run.metrics.streams.items():
        points = zip(run.metrics.clocks[name], rows["value"], rows["step"], strict=True)
        _metric(_folder(root / "metrics") / name, points)
    last_step = max((int(rows["step"][-1]) for rows in run.metrics.streams.values() if len(rows)), default=0)
    for name, value in run.metrics.summary.items():
        _metric(_folder(root / "metrics") / f"summary.{name}", [(last_s, value, last_step)])
    for name, text in run.parameters.items():
        (_folder(root / "params") / name).write_text(text[:LONGEST_VALUE], encoding="utf-8")
    (_folder(root / "tags") / "mlflow.runName").write_text(run.run_id, encoding="utf-8")


def _metric(path: Path, points: Iterable[tuple[float, float, int]]) -> None:
    """Write a metric's points, (Unix seconds, value, step); one without any is no metric to MLflow."""
    lines = [f"{_ms(time_s)} {float(value)!r} {int(step)}\n" for time_s, value, step in points]
    if lines:
        path.write_text("".join(lines), encoding="utf-8")


def _meta(folder: Path, held: Mapping[str, Any]) -> None:
    """Write a meta.yaml: JSON is YAML."""
    (folder / "meta.yaml").write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


def _experiment_id(study: str) -> str:
    return str(int(hashlib.sha256(study.encode()).hexdigest()[:15], 16))


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _ms(time_s: float) -> int:
    return round(1000 * time_s)
