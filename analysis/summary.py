"""One run as the analysis sees it, and the rows that the terminal and the report show alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.result import FitResult
from analysis.table import Observations

if TYPE_CHECKING:
    from analysis.compare import Comparison

RUN_COLUMNS = ("run", "state", "N", "D", "FLOPs", "ranks", "loss", "wall s", "tokens/s", "of peak", "remark")
COEFFICIENT_COLUMNS = ("parameter", "value", "std. error", "95 % interval", "remark")
HOLD_OUT_COLUMNS = (
    "held-out run",
    "FLOPs / largest fitted",
    "predicted",
    "95 % interval",
    "measured",
    "error",
    "constant",
)
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run. `N` is the size that the law sees, `C` its FLOPs as counted, `loss` None unless the run is done."""

    run_id: str
    state: str
    N: float
    D: float
    C: float
    ranks: int
    loss: float | None
    wall_s: float | None
    tokens_per_s: float | None = None
    peak_share: float | None = None
    """FLOP rate over that of the machine's fastest matrix product."""
    held_out: bool
    excluded: bool
    cause: str
    """Why it failed, what was damaged, skipped or measured wrong; empty when all is well."""
    outcomes: dict[str, float] = field(default_factory=dict)
    """Everything in the run's summary, by name."""
    curves: dict[str, NDArray[np.void]] = field(default_factory=dict)
    """Rows (step, tokens, time, value) of `train_loss` and `val_loss`."""

    @property
    def measured(self) -> float:
        """The final loss, not a number while there is none."""
        return float("nan") if self.loss is None else self.loss


def runs_of_points(points: Observations) -> list[RunSummary]:
    """Return points of N, D and a loss as finished runs, of which nothing else is known."""
    N, D = points.N, points.D
    known = zip(points.labels, N.tolist(), D.tolist(), points.y.tolist(), strict=True)
    return [
        RunSummary(
            run_id=label,
            state="done",
            N=n,
            D=d,
            C=6 * n * d,
            ranks=0,
            loss=y,
            wall_s=None,
            held_out=False,
            excluded=False,
            cause="",
        )
        for label, n, d, y in known
    ]


def run_rows(runs: Sequence[RunSummary]) -> list[Row]:
    """Return a row of RUN_COLUMNS for every run."""
    return [
        (
            run.run_id,
            run.state,
            f"{run.N:,.0f}",
            f"{run.D:,.0f}",
            f"{run.C:.3g}",
            str(run.ranks or ""),
            "" if run.loss is None else f"{run.loss:.4f}",
            "" if run.wall_s is None else f"{run.wall_s:.1f}",
            "" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
            "" if run.peak_share is None else f"{run.peak_share:.1%}",
            "; ".join(filter(None, ["held out" * run.held_out, "excluded" * run.excluded, run.cause])),
        )
        for run in runs
    ]


COMPARISON_COLUMNS = (
    "law",
    "parameters",
    "AICc",
    "over best",
    "rms error, %",
    "held-out, %",
    "inside",
    "remark",
)


def comparison_rows(laws: Sequence[Comparison]) -> list[Row]:
    """Return a row of COMPARISON_COLUMNS for every law; `inside` is the share of held-out points in their intervals."""
    return [
        (
            one.law,
            str(one.parameters or ""),
            _number(one.aicc, ".2f"),
            _number(one.delta_aicc, ".2f"),
            _number(100 * one.rms_error, ".3f"),
            _number(100 * one.held_out_error, ".3f"),
            _number(one.held_out_inside, ".0%"),
            one.problem,
        )
        for one in laws
    ]


def _number(value: float, form: str) -> str:
    return "" if value != value else f"{value:{form}}"


SPREAD_COLUMNS = ("run", "ranks", "read s", "embed s", "write s", "all s", "memory a rank, MiB", "halo, MB")


def spread_rows(runs: Sequence[RunSummary]) -> list[Row]:
    """Return a row of SPREAD_COLUMNS for every embedding that finished: where time and memory went."""
    return [
        (
            run.run_id,
            str(run.ranks),
            *(f"{run.outcomes[name]:.2f}" for name in ("read_s", "embed_s", "write_s", "wall_s")),
            f"{run.outcomes['peak_bytes_least'] / 2**20:,.0f} to {run.outcomes['peak_bytes'] / 2**20:,.0f}",
            f"{run.outcomes['halo_bytes'] / 1e6:,.1f}",
        )
        for run in runs
        if run.state == "done" and "halo_bytes" in run.outcomes and "embed_s" in run.outcomes
    ]


def coefficient_rows(fit: FitResult) -> list[Row]:
    """Return a row of COEFFICIENT_COLUMNS for every parameter of the law."""
    rows: list[Row] = []
    for name, value in fit.params.items():
        interval = fit.intervals.get(name)
        rows.append(
            (
                name,
                f"{value:.6g}",
                f"{fit.stderr[name]:.3g}" if name in fit.stderr else "",
                f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else "",
                _remark(fit, name),
            )
        )
    return rows


def _remark(fit: FitResult, name: str) -> str:
    if name in fit.held:
        return "held"
    return f"NOT IDENTIFIED: {fit.unidentified[name]}" if name in fit.unidentified else ""


def hold_out_rows(fit: FitResult, runs: Sequence[RunSummary]) -> list[Row]:
    """Return a row of HOLD_OUT_COLUMNS for every finished held-out run; errors are relative to the measured loss.

    The constant predictor says the mean of the fitted losses whatever the run.
    """
    rows: list[Row] = []
    largest = max((run.C for run in runs if run.loss is not None and not run.held_out), default=float("nan"))
    for run in runs:
        if not run.held_out or run.loss is None:
            continue
        predicted, interval = fit.predict(N=run.N, D=run.D), fit.interval(N=run.N, D=run.D)
        rows.append(
            (
                run.run_id,
                f"{run.C / largest:.2f}",
                f"{predicted:.4f}",
                f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "",
                f"{run.loss:.4f}",
                f"{100 * (predicted / run.loss - 1):+.2f} %",
                f"{100 * (fit.mean_loss / run.loss - 1):+.2f} %",
            )
        )
    return rows


def remarks(fit: FitResult) -> list[str]:
    """Return what a reader must know beside the coefficients, most important first."""
    told = [f"warning: {sentence}" for sentence in fit.warnings]
    told += [f"left out of the fit: {sentence}" for sentence in fit.exclusions]
    told.append(
        f"{fit.n_points} points; sum of Huber terms {fit.objective:.9g} (delta {fit.delta:g}); scaled gradient "
        f"{fit.gradient_norm:.1e}; {fit.starts_reached_best} of {fit.starts_tried} starts ended at this minimum; "
        f"{fit.bootstrap} bootstrap resamples"
    )
    if "N" in fit.ranges:
        told.append(
            f"N: {fit.size_convention}; D: {fit.data_convention}; compute of the optimum: {fit.flops_convention}"
        )
    return told
