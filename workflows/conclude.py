"""What follows from the finished runs of a study: the fit, the hold-outs held against it, and the report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from analysis import laws
from analysis.compare import Comparison, Trial, compare
from analysis.errors import AnalysisError, DataError, StoreError
from analysis.fitting import fit
from analysis.markdown import fit_markdown
from analysis.resampling import parse_resampling
from analysis.result import FitResult
from analysis.store import read_run
from analysis.summary import RunSummary
from analysis.table import Observations
from workflows.progress import study_status
from workflows.study import Study

CURVES = ("train_loss", "val_loss", "micro_f1", "macro_f1")
"""Streams that a report draws."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A study's runs and the law fitted to them; without a fit that was asked for, `problem` says why.

    `exit_code` is then that of the problem.
    """

    runs: list[RunSummary]
    fit: FitResult | None = None
    laws: list[Comparison] = field(default_factory=list)
    """The study's laws side by side, best first, where it names several."""
    problem: str = ""
    exit_code: int = 0


def fit_study(study: Study) -> Fitted:
    """Fit the study's law to its finished runs, write `fit.{json,h5,md}`, and return what was found."""
    runs, asked = summaries(study), study.file.analysis
    if not asked.candidates:
        return Fitted(runs)
    try:
        points = observations(study, runs, asked.law)
        fitted = fit(
            asked.law,
            points,
            hold=laws.get(asked.law).own(asked.hold),
            delta=asked.delta,
            bootstrap=asked.bootstrap,
            resampling=parse_resampling(asked.bootstrap_by),
            seed=asked.seed,
        )
        fitted.write(study.directory, fit_markdown(fitted))
        side_by_side = compared(study, runs) if asked.laws else []
    except AnalysisError as error:
        return Fitted(runs, problem=str(error), exit_code=error.exit_code)
    return Fitted(runs, fitted, side_by_side)


def compared(study: Study, runs: list[RunSummary]) -> list[Comparison]:
    """Return the study's laws side by side: fitted to the finished runs, held against the hold-outs."""
    asked = study.file.analysis
    points = observations(study, runs, asked.law)
    return compare(points, asked.candidates, trial(study, runs, asked.law), asked.hold, asked.bootstrap)


def trial(study: Study, runs: list[RunSummary], law: str) -> Trial | None:
    """Return the finished runs and the hold-outs that a fit to them has to foretell; None where there are none."""
    unseen = [run for run in runs if run.held_out and run.state == "done"]
    if not unseen:
        return None
    known = [replace(run, held_out=False, excluded=False) for run in unseen]
    return Trial(observations(study, runs, law), observations(study, known, law))


def report_study(study: Study, fitted: Fitted) -> Path:
    """Write the report and its plots into the study's directory and return its path."""
    from analysis.report import write_report  # only now: matplotlib takes as long as a fit

    return write_report(
        study.directory, study.file.name, fitted.runs, fitted.fit, fitted.problem, fitted.laws
    )


def summaries(study: Study) -> list[RunSummary]:
    """Return every run of the study with what its files hold: planned sizes, measured loss and curves."""
    nonembedding = study.file.analysis.size == "nonembedding"
    found = []
    for run, status in zip(study.runs, study_status(study), strict=True):
        try:
            metrics = read_run(study.run_dir(run).path)
            summary, streams, damaged = metrics.summary, metrics.streams, metrics.damaged
        except StoreError as error:
            summary, streams, damaged = {}, {}, [str(error)] if status.attempts else []
        found.append(
            RunSummary(
                run_id=run.id,
                state=status.state,
                N=float(run.size.n_nonembedding if nonembedding else run.size.n_total),
                D=float(run.size.d_tokens),
                C=run.size.c_flops,
                ranks=run.resources.ranks,
                loss=summary.get("L_val") if status.state == "done" else None,
                wall_s=summary.get("wall_s"),
                tokens_per_s=summary.get("tokens_per_s"),
                peak_share=summary.get("peak_share"),
                held_out=run.held_out,
                excluded=run.id in study.file.analysis.exclude,
                cause="; ".join(filter(None, [status.cause, *damaged, *_doubts(summary)])),
                curves={name: streams[name] for name in CURVES if name in streams},
                outcomes=summary,
            )
        )
    return found


def _doubts(summary: dict[str, float]) -> list[str]:
    """Return what a reader must know of how a run went."""
    found = []
    if summary.get("skipped_steps"):
        found.append(f"{summary['skipped_steps']:.0f} steps went without an update")
    if summary.get("measuring_errors"):
        found.append("measuring error: faster than the fastest matrix product, FLOP rate left out")
    return found


def observations(study: Study, runs: list[RunSummary], law: str) -> Observations:
    """Return what `law` speaks of: finished runs, without hold-outs and exclusions. Raises DataError for none."""
    if "p" in laws.get(law).inputs:
        return times(study, runs, laws.get(law).outcome)
    fitted = [run for run in runs if run.loss is not None and not run.held_out and not run.excluded]
    if not fitted:
        raise DataError(f"{study.directory}: no run has finished, there is nothing to fit")
    missing = [run.run_id for run in runs if run.loss is None and not run.held_out]
    return Observations.of_runs(
        N=np.array([run.N for run in fitted]),
        D=np.array([run.D for run in fitted]),
        L=np.array([run.measured for run in fitted]),
        labels=tuple(run.run_id for run in fitted),
        source=str(study.directory),
        size_convention=f"{study.file.analysis.size} parameters",
        runs=tuple(run.run_id for run in fitted),
        exclusions=tuple(f"{run.run_id}: excluded in the study file" for run in runs if run.excluded)
        + tuple(f"{run_id}: not finished" for run_id in missing),
    )


def times(study: Study, runs: list[RunSummary], outcome: str) -> Observations:
    """Return wall times t, or rates where the outcome is none, by ranks. Raises DataError for none."""
    fitted = [
        run for run in runs if run.state == "done" and run.wall_s and not (run.held_out or run.excluded)
    ]
    if not fitted:
        raise DataError(f"{study.directory}: no run has finished, there is nothing to fit")
    wall_s = np.array([run.wall_s for run in fitted])
    return Observations(
        x={"p": np.array([float(run.ranks) for run in fitted])},
        y=wall_s if outcome == "t" else 1 / wall_s,
        labels=tuple(run.run_id for run in fitted),
        runs=tuple(run.run_id for run in fitted),
        source=str(study.directory),
        outcome=outcome,
        size_convention="ranks; wall time from the first read to the last write",
        exclusions=tuple(
            f"{run.run_id}: {'excluded in the study file' if run.excluded else 'not finished'}"
            for run in runs
            if run not in fitted and not run.held_out
        ),
    )
