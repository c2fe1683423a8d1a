"""The plots of a report, each a matplotlib figure made without global state; colour always stands for N."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.result import FitResult
from analysis.summary import RunSummary
from analysis.table import Observations

Colour = tuple[float, float, float, float]
Style = dict[str, Any]
HOLD_OUT = "#d1495b"
BAND = 0.18
MOST_NAMED = 12
"""Sizes that a legend names."""
TOLD = "told:"
"""Begins the id of what has a text to show."""


def loss_curves(runs: Sequence[RunSummary]) -> Figure | None:
    """Return training and validation loss against tokens and against FLOPs; None when no run has a curve."""
    shown = [run for run in runs if "val_loss" in run.curves and len(run.curves["val_loss"])]
    if not shown:
        return None
    colour = _by_size(runs)
    figure, axes = new_figure(2)
    for axis, unit in zip(axes, ("tokens", "FLOPs"), strict=True):
        for run in shown:
            train, val = run.curves.get("train_loss"), run.curves["val_loss"]
            style: Style = {"color": HOLD_OUT if run.held_out else colour(run.N)}
            scale = run.C / run.D if unit == "FLOPs" else 1.0
            if train is not None:
                axis.plot(train["tokens"] * scale, train["value"], lw=0.7, alpha=0.35, **style)
            val = val[val["tokens"] > 0]  # a logarithm has no place for the untrained model
            axis.plot(val["tokens"] * scale, val["value"], lw=1.4, **style)
            for row in val:
                point = axis.plot(row["tokens"] * scale, row["value"], "o", ms=3, zorder=3, **style)
                tell(point, f"{run.run_id}: loss {row['value']:.4f} at {row['tokens']:,} tokens")
        axis.set(xscale="log", xlabel=f"training {unit}", ylabel="loss, nat/token")
        values = np.concatenate([run.curves["val_loss"]["value"] for run in shown])
        if np.isfinite(values).any():  # the training loss starts far above
            axis.set_ylim(top=values[np.isfinite(values)].max() * 1.03)
    _legend(axes[0], shown, colour)
    axes[1].set_title("thin: training, dots: validation", fontsize=9, loc="right")
    return figure


def speeds(runs: Sequence[RunSummary]) -> Figure | None:
    """Return tokens a second of every run that says so; None where fewer than two do, and nothing is to compare."""
    shown = [run for run in runs if run.tokens_per_s]
    if len(shown) < 2:
        return None
    figure, (axis,) = new_figure(1, height=1.2 + 0.3 * len(shown))
    rows = np.arange(len(shown))[::-1]
    bars = axis.barh(rows, [run.tokens_per_s or 0.0 for run in shown], height=0.6, color="#4c6a92")
    for bar, run in zip(bars, shown, strict=True):
        tell([bar], f"{run.run_id}: {run.tokens_per_s:,.0f} tokens/s")
    axis.set_yticks(rows, [run.run_id for run in shown], fontsize=9, parse_math=False)
    axis.set(xlabel="tokens/s")
    return figure


def law(fit: FitResult, runs: Sequence[RunSummary]) -> Figure:
    """Return the measured losses over tokens with the law's curve for each size."""
    colour, done = _by_size(runs), _done(runs)
    figure, (axis,) = new_figure(1)
    D = np.geomspace(min(run.D for run in done) / 1.5, max(run.D for run in done) * 1.5, 100)
    for size in sorted({run.N for run in done}):
        axis.plot(D, [fit.predict(N=size, D=d) for d in D], lw=1.2, color=colour(size))
    for run in done:
        if not run.held_out:
            tell(axis.plot(run.D, run.measured, "o", ms=6, mec="white", color=colour(run.N)), said(run))
        else:
            interval = fit.interval(N=run.N, D=run.D)
            if interval:
                axis.plot([run.D, run.D], interval, lw=3, alpha=0.4, color=HOLD_OUT)
            tell(axis.plot(run.D, run.measured, "*", ms=14, mec="white", color=HOLD_OUT), said(run))
    axis.set(xscale="log", xlabel="training tokens D", ylabel="final loss, nat/token")
    _legend(axis, done, colour)
    return figure


def residuals(fit: FitResult, runs: Sequence[RunSummary]) -> Figure:
    """Return measured over predicted loss, in percent, against compute."""
    colour, done = _by_size(runs), _done(runs)
    figure, (axis,) = new_figure(1, height=3.0)
    axis.axhline(0, lw=0.8, color="grey")
    for run in done:
        off = 100 * ((run.measured) / fit.predict(N=run.N, D=run.D) - 1)
        mark: Style = (
            {"marker": "*", "ms": 14, "color": HOLD_OUT}
            if run.held_out
            else {"marker": "o", "color": colour(run.N)}
        )
        tell(axis.plot(run.C, off, mec="white", ls="", **mark), f"{said(run)}, {off:+.2f} % off the law")
    axis.set(xscale="log", xlabel="training FLOPs, as counted", ylabel="measured / predicted - 1, %")
    _legend(axis, done, colour)
    return figure


def agreement(fit: FitResult, points: Observations) -> Figure:
    """Return how far each point lies off the law, over what the law says, in percent or in the outcome's own unit."""
    off = np.array(fit.residuals)
    if fit.scale == "log":
        predicted, off, label = points.y * np.exp(-off), 100 * np.expm1(off), "observed / predicted - 1, %"
    else:
        predicted, label = points.y - off, "observed - predicted"
    figure, (axis,) = new_figure(1)
    axis.axhline(0, lw=0.8, color="grey")
    for name, at, y, gap in zip(points.labels, predicted, points.y, off, strict=True):
        tell(axis.plot(at, gap, "o", mec="white", color="#4c6a92"), f"{name}: {y:.6g}, {gap:+.3g} off")
    axis.set(xlabel=f"predicted {fit.outcome}", ylabel=label)
    return figure


def frontier(fit: FitResult, runs: Sequence[RunSummary]) -> Figure | None:
    """Return the compute-optimal size over compute with its 95 % band, and the runs (C = 6 N D for all).

    None for a law that trades no size for tokens.
    """
    if not fit.trades:
        return None
    colour, done = _by_size(runs), _done(runs)
    figure, axes = new_figure(2)
    compute = [6 * run.N * run.D for run in done]
    budgets = np.geomspace(min(compute) / 2, max(compute) * 10, 60)
    optima = [fit.compute_optimal(float(c)) for c in budgets]
    for axis, name, label in ((axes[0], "N", "parameters N"), (axes[1], "L", "loss, nat/token")):
        axis.plot(budgets, [best[name] for best in optima], lw=1.6, color="black", label="compute-optimal")
        band = [best.get("intervals", {}).get(name) for best in optima]
        if None not in band:
            low, high = np.array(band).T
            axis.fill_between(budgets, low, high, alpha=BAND, color="black", lw=0, label="95 % interval")
        for run, c in zip(done, compute, strict=True):
            mark: Style = {"marker": "*", "ms": 14} if run.held_out else {"marker": "o"}
            mark["color"] = HOLD_OUT if run.held_out else colour(run.N)
            value = run.N if name == "N" else run.measured
            tell(axis.plot(c, value, ls="", mec="white", **mark), said(run))
        axis.set(xscale="log", xlabel="training FLOPs, 6 N D", ylabel=f"{label}")
    axes[0].set_yscale("log")
    shown = [run.N for run in done]
    axes[0].set_ylim(min(shown) / 5, max(shown) * 5)
    losses = [run.measured for run in done]
    axes[1].set_ylim(min(losses) * 0.85, max(losses) * 1.1)
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def hold_outs(fit: FitResult, runs: Sequence[RunSummary]) -> Figure | None:
    """Return each held-out run's measured loss beside the prediction and what a constant would have said."""
    held = [run for run in _done(runs) if run.held_out]
    if not held:
        return None
    figure, (axis,) = new_figure(1, height=1.4 + 0.6 * len(held))
    for row, run in enumerate(held):
        interval = fit.interval(N=run.N, D=run.D)
        if interval:
            axis.plot(interval, [row, row], lw=9, alpha=0.25, color="black", solid_capstyle="butt")
        predicted = fit.predict(N=run.N, D=run.D)
        tell(axis.plot(predicted, row, "|", ms=20, mew=2, color="black"), f"predicted {predicted:.4f}")
        tell(axis.plot(run.measured, row, "*", ms=14, mec="white", color=HOLD_OUT), said(run))
        tell(axis.plot(fit.mean_loss, row, "x", ms=8, mew=2, color="grey"), f"mean {fit.mean_loss:.4f}")
    axis.set_yticks(range(len(held)), [run.run_id for run in held], fontsize=9, parse_math=False)
    axis.set(ylim=(-0.7, len(held) - 0.3), xlabel="loss, nat/token")
    axis.set_title(
        "bar: predicted, 95 %   star: measured   cross: mean of the fitted runs", fontsize=9, loc="right"
    )
    return figure


def tell(artists: Iterable[Artist], text: str) -> None:
    """Let these show `text` under the pointer, once the figure is SVG (see `analysis.report`)."""
    for artist in artists:
        artist.set_gid(TOLD + text)


def said(run: RunSummary) -> str:
    """Return what a run's point says of it."""
    return f"{run.run_id}: loss {run.measured:.4f}, N {run.N:,.0f}, D {run.D:,.0f}, {run.C:.3g} FLOPs"


def new_figure(columns: int, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of so many plots side by side."""
    figure = Figure(figsize=(9.5, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def finish(figure: Figure) -> Figure:
    """Return the figure with plain labels on log axes that span little, where matplotlib writes none."""
    for axis in figure.axes:
        for name in ("x", "y"):
            side = getattr(axis, f"{name}axis")
            low, high = sorted(side.get_view_interval())
            if getattr(axis, f"get_{name}scale")() == "log" and high / low < 100:
                side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                side.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
                side.set_minor_formatter(NullFormatter())
    return figure


def short(value: float) -> str:
    """Return a count as a person writes it: 67.8k, 6.94M, 3.84e12."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if limit <= value < limit * 1e3:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}".replace("e+", "e")


def _by_size(runs: Sequence[RunSummary]) -> Callable[[float], Colour]:
    """Return the colour of a size: by rank among all sizes, so that close sizes stay apart."""
    sizes = sorted({run.N for run in runs})
    shades = colormaps["viridis"](np.linspace(0.05, 0.85, max(2, len(sizes))))
    return lambda size: tuple(shades[sizes.index(size)])


def _legend(axis: Axes, runs: Sequence[RunSummary], colour: Callable[[float], Colour]) -> None:
    """Add one entry for each size (of many, some), and one for the hold-outs when there are some."""
    sizes = sorted({run.N for run in runs})
    for at in np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_NAMED)).round().astype(int)):
        size = sizes[at]
        axis.plot([], [], "o", color=colour(size), label=f"N = {short(size)}")
    if any(run.held_out for run in runs):
        axis.plot([], [], "*", ms=11, color=HOLD_OUT, label="held out")
    axis.legend(frameon=False, fontsize=9)


def _done(runs: Sequence[RunSummary]) -> list[RunSummary]:
    return [run for run in runs if run.loss is not None]
