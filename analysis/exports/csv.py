"""Two tables: `steps.csv`, a row a step of each run, and `runs.csv`, a row a run. `isoflop fit --data` reads both."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.exports import RunRecord
from analysis.sources import step_rows


def write(runs: Sequence[RunRecord], out: Path) -> list[Path]:
    """Write both tables; a cell is empty where a run has no such value at that step. Numbers keep all their digits."""
    steps = [{"run": run.run_id, **_seen(row)} for run in runs for row in step_rows(run.metrics)]
    whole = [{"run": run.run_id, "state": run.state, **run.metrics.summary, **run.parameters} for run in runs]
    return [_table(out / "steps.csv", steps), _table(out / "runs.csv", whole)]


def _seen(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row, without its tokens where a model has seen none: a law of tokens has no place for it."""
    return row if row["tokens"] else {**row, "tokens": ""}


def _table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    header = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("x", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, header, restval="")
        table.writeheader()
        table.writerows(rows)
    return path
