"""Metrics of runs and studies for other programs: which runs there are, and what is told of those left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.errors import StoreError
from analysis.exports import export, record
from launch.rundir import RunDir
from workflows.arguments import study_at


def run_dirs(path: Path) -> list[RunDir]:
    """Return the runs of a study, given by its file or its directory; none where `path` is no study.

    Raises:
        ConfigError, YamlError, SiteError: the study's file is wrong.
    """
    if not path.is_file() and not (path / "study.yaml").exists():
        return []
    study = study_at(path, None, None)
    return [study.run_dir(run) for run in study.runs]


def write_metrics(runs: Sequence[RunDir], to: str, out: Path, say: Callable[[str], None]) -> list[Path]:
    """Write the metrics of runs as the program `to` keeps them; return the files to open.

    Of several runs, those whose metrics cannot be read are left out and told to `say`.

    Raises:
        StoreError: the only run has no metrics, or damaged ones.
        DataError, MissingPackageError: as `analysis.exports.export`.
    """
    records = []
    for run in runs:
        try:
            records.append(record(run.path, run.state()))
        except StoreError as error:
            if len(runs) == 1:
                raise
            say(f"left out: {error}")
    return export(records, to, out)
