"""Offline runs of Weights & Biases, written by its own package without the network; `wandb sync` sends them.

Its time axis is that of the export: the package stamps what it is told itself. `time_s`, a metric beside the others,
holds the seconds since the run began.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.exports import RunRecord, missing
from analysis.sources import step_rows


def write(runs: Sequence[RunRecord], out: Path) -> list[Path]:
    """Write each run, its configuration and its summary; return the directories that `wandb sync` takes.

    Raises:
        MissingPackageError: the package wandb is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise missing(out, "wandb") from None
    written = []
    for run in runs:
        told = wandb.init(
            mode="offline",
            dir=str(out),
            project=run.study,
            id=run.run_id,
            name=run.run_id,
            config=run.parameters,
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True),
            reinit="finish_previous",
        )
        for row in step_rows(run.metrics):
            values = {name: value for name, value in row.items() if name not in run.metrics.summary}
            values["time_s"] = values.pop("time")
            told.log(values, step=values.pop("step"))
        told.summary.update(run.metrics.summary)
        told.finish()
        written.append(Path(told.dir).parent)
    return written
