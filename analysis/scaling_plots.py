"""Plots of spread work: time by ranks with the law through it, and scores by the share of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis import laws
from analysis.plots import new_figure
from analysis.result import FitResult
from analysis.summary import RunSummary


def times(fit: FitResult, runs: Sequence[RunSummary]) -> Figure | None:
    """Return wall time by ranks, measured and fitted, beside the ideal; None without a finished run."""
    done = [run for run in runs if run.state == "done" and run.wall_s]
    if not done:
        return None
    figure, (axis,) = new_figure(1)
    ranks = np.array([float(run.ranks) for run in done])
    wall_s = np.array([run.wall_s for run in done], float)
    axis.scatter(ranks, wall_s, zorder=3, label="measured")
    p = np.geomspace(ranks.min(), 2 * ranks.max(), 60)
    fitted = np.array([fit.predict(p=float(each)) for each in p])
    axis.plot(p, fitted if laws.get(fit.law).outcome == "t" else 1 / fitted, label=fit.law)
    axis.plot(p, wall_s[ranks.argmin()] * ranks.min() / p, "--", linewidth=1, label="ideal")
    axis.set(xscale="log", yscale="log", xlabel="ranks", ylabel="wall time, s")
    axis.legend()
    return figure


def scores(runs: Sequence[RunSummary]) -> Figure | None:
    """Return micro and macro F1 by the share of labels that train; None where no run has any."""
    scored = [run for run in runs if len(run.curves.get("micro_f1", ()))]
    if not scored:
        return None
    figure, axes = new_figure(2)
    for axis, name in zip(axes, ("micro_f1", "macro_f1"), strict=True):
        for run in scored:
            rows = run.curves[name]
            axis.plot(rows["step"], 100 * rows["value"], "o-", label=run.run_id)
        axis.set(xlabel="labels that train, %", ylabel=f"{name.replace('_f1', '')} F1, %")
    axes[0].legend(fontsize="small")
    return figure
