"""Metrics of runs as other programs keep them, one file a program: a module in this folder with a `write` is one.

`write(runs, out)` makes files in the directory `out`, which is there and empty, and returns those that a user opens.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from analysis.errors import AnalysisError, DataError
from analysis.sources import flat
from analysis.store import RunMetrics, read_run


class MissingPackageError(AnalysisError):
    """The program whose files are asked for is not installed here; the sentence says how to install it."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What other programs are told of a run."""

    study: str
    run_id: str
    state: str
    """done, failed, running, requeue, interrupted or pending."""
    metrics: RunMetrics

    @property
    def parameters(self) -> dict[str, str]:
        """Return the configuration and what else was fixed when the run began, nested keys joined by dots."""
        meta = {name: value for name, value in self.metrics.meta.items() if name != "config"}
        nested = {**meta, **json.loads(self.metrics.meta.get("config", "{}"))}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in flat(nested)}

    @property
    def span_s(self) -> tuple[float, float]:
        """Return the Unix seconds of the first and the last row, those of the last attempt's start where none is."""
        began_s = float(self.metrics.meta["started_unix_s"])
        times = [float(t) for clock in self.metrics.clocks.values() for t in clock] or [began_s]
        return min(began_s, *times), max(times)


def names() -> list[str]:
    """Return the names of all programs, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def record(directory: Path, state: str) -> RunRecord:
    """Return what the directory of a run holds. Raises StoreError."""
    return RunRecord(directory.resolve().parent.name, directory.resolve().name, state, read_run(directory))


def export(runs: Sequence[RunRecord], to: str, out: Path) -> list[Path]:
    """Write the runs' metrics as the program `to` keeps them into the new directory `out`; return the files to open.

    Raises:
        DataError: there is no such program, no run, `out` holds something already or cannot be written.
        MissingPackageError: the program has to be installed for that.
    """
    if to not in names():
        raise DataError(f"export: --to {to}; there is {', '.join(names())}")
    if not runs:
        raise DataError("export: no run has metrics yet")
    try:
        if out.exists() and any(out.iterdir()):
            raise DataError(f"{out}: holds something already; give another --out")
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        written: list[Path] = import_module(f"analysis.exports.{to}").write(runs, out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    return written


def missing(out: Path, extra: str) -> MissingPackageError:
    """Return the error that says what to install before such files can be written."""
    return MissingPackageError(f"{out}: writing such files needs `pip install isoflop[{extra}]`")
