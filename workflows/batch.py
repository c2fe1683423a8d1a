"""One run of a study as a batch job of its own: rendered, checked and sent without Parsl."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from slurm.script import render
from slurm.spec import JobSpec, Resources, capture, parse_walltime
from workflows.errors import ConfigError
from workflows.study import Run, Study

CAPTURED = ("PYTHONPATH", "HDF5_USE_FILE_LOCKING", "ISOFLOP_TRACEBACK")
"""Variables of this shell that a job takes with it, and no others."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line may say about a job beyond its study."""

    walltime: str | None = None
    queue: str | None = None
    account: str | None = None
    restarts_max: int = 3
    archive: Path | None = None
    portable: bool = False
    """Whether paths start from where sbatch is called, so that the script may travel with a checkout."""


def pick(study: Study, run_id: str | None) -> Run:
    """Return the run that is named, or the only one of the study. Raises ConfigError."""
    found = [run for run in study.runs if run_id in (None, run.id)]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(run.id for run in study.runs)
    wrong = (
        f"no run '{run_id}'"
        if run_id
        else f"a job is one run, this study has {len(found)}; name one with --run"
    )
    raise ConfigError(f"{study.file.name}: {wrong}; there is {ids}")


def job_spec(study: Study, run: Run, wishes: Wishes) -> JobSpec:
    """Return the job that brings `run` to its end at the study's site.

    Raises:
        SpecError: something that no script may hold; the sentence names it.
    """
    here = Path.cwd()
    directory = study.run_dir(run).path
    cache_dir = study.cache_dir
    return JobSpec(
        name=f"{study.file.name}.{run.id}",
        program=study.workflow.program,
        run_dir=directory if wishes.portable else here / directory,
        config=study.run_yaml(run, cache_dir if wishes.portable else cache_dir.resolve()),
        components=(Resources(run.resources.ranks, run.resources.threads),),
        python=Path(".venv/bin/python") if wishes.portable else Path(sys.executable),
        directory=None if wishes.portable else here,
        walltime_s=parse_walltime(wishes.walltime) if wishes.walltime else None,
        queue=wishes.queue,
        account=wishes.account,
        restarts_max=wishes.restarts_max,
        archive=wishes.archive,
        environment={} if wishes.portable else capture(CAPTURED, dict(os.environ)),
    )


def script(study: Study, run_id: str | None, wishes: Wishes) -> str:
    """Return the batch script of one run. Touches nothing."""
    return render(job_spec(study, pick(study, run_id), wishes), study.site)
