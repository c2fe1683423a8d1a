"""How to divide compute between size and tokens, without a law of the loss: isoFLOP minima and the curves' envelope.

Approaches 1 and 2 of Hoffmann et al. 2022; each yields N_opt ~ C^a and D_opt ~ C^b, to be held against those of the
parametric law (approach 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import DataError
from analysis.table import Observations

Floats = NDArray[np.float64]
SAME_BUDGET = 0.1
"""Relative difference up to which neighbours in FLOPs belong to one budget."""
MIN_SIZES = 4
MIN_BUDGETS = 3
ENVELOPE_BUDGETS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Exponents of N_opt ~ C^a and D_opt ~ C^b with 95 % intervals, and the optima that they pass through."""

    approach: str
    a: float
    b: float
    coefficient: float
    """N_opt at C = 1."""
    interval: tuple[float, float] | None
    """Of a; None without a bootstrap."""
    optima: list[tuple[float, float, float]]
    """C, N_opt and loss."""
    dropped: list[str]
    """Budgets that show no optimum, a sentence each."""

    def size(self, flops: float) -> float:
        """Return N_opt."""
        return float(self.coefficient * flops**self.a)


def isoflop(
    observations: Observations, *, vertex: str = "parabola", bootstrap: int = 1000, seed: int = 0
) -> Allocation:
    """Return the allocation through the minimum of each budget's losses over ln N.

    The minimum is that of a `parabola`, or of an Akima `interpolation` of ln L (as Porian et al. 2024 do, whose
    budgets hold a wide range of sizes). It counts only inside the sampled sizes. Resamples draw within each budget.

    Raises:
        DataError: `vertex` is neither, or fewer than three budgets show a minimum.
    """
    if vertex not in VERTICES:
        raise DataError(f"vertex '{vertex}': there is {', '.join(VERTICES)}")
    find = VERTICES[vertex]
    columns = observations.columns(("N", "C"))
    log_n, log_c, loss = np.log(columns["N"]), np.log(columns["C"]), observations.y
    optima, dropped, kept = [], [], []
    for rows in budgets(log_c):
        flops = float(np.exp(np.median(log_c[rows])))
        found = find(log_n[rows], loss[rows])
        if isinstance(found, str):
            dropped.append(f"C = {flops:.3g}: {found}")
            continue
        optima.append((flops, float(np.exp(found[0])), found[1]))
        kept.append(rows)
    if len(optima) < MIN_BUDGETS:
        raise DataError(
            f"{observations.source}: {len(optima)} budgets show a minimum, an exponent needs {MIN_BUDGETS}"
            + "".join(f"; {sentence}" for sentence in dropped[:3])
        )
    slopes = []
    for i in range(bootstrap):
        rng = np.random.default_rng([seed, i])
        drawn = [find(log_n[pick], loss[pick]) for pick in (rng.choice(rows, len(rows)) for rows in kept)]
        again = [(np.log(o[0]), v[0]) for o, v in zip(optima, drawn, strict=True) if not isinstance(v, str)]
        if len(again) >= MIN_BUDGETS:
            slopes.append(_line(*np.array(again).T)[0])
    return _allocation(f"isoflop, {vertex}", optima, dropped, slopes)


def envelope(curves: Sequence[tuple[float, Floats, Floats]]) -> Allocation:
    """Return the allocation along the lower envelope of training curves, each (N, tokens, loss) of a run.

    At each of 50 budgets between the second-smallest start and the largest end, the run of the lowest loss there is the
    optimum; budgets that only one run reaches, or whose best run is the smallest or largest, show none.

    Raises:
        DataError: fewer than three runs have a curve of three points, or fewer than three budgets show an optimum.
    """
    whole = [(N, 6 * N * np.asarray(D), np.asarray(L)) for N, D, L in curves if len(D) >= 3]
    if len({N for N, _, _ in whole}) < 3:
        raise DataError(
            f"envelope: {len(whole)} of {len(curves)} runs have curves; three sizes with three points each are needed"
        )
    ends = min(sorted(C.min() for _, C, _ in whole)[1:]), max(C.max() for _, C, _ in whole)
    sizes = sorted({N for N, _, _ in whole})
    optima, dropped = [], []
    for flops in np.geomspace(*ends, ENVELOPE_BUDGETS):
        there = [
            (float(np.interp(np.log(flops), np.log(C), L)), N)
            for N, C, L in whole
            if C.min() <= flops <= C.max()
        ]
        best = min(there, default=(0.0, 0.0))
        if len(there) < 2 or best[1] in (sizes[0], sizes[-1]):
            dropped.append(
                f"C = {flops:.3g}: {len(there)} runs reach it, the best has N = {best[1]:.3g}, at the edge"
            )
        else:
            optima.append((float(flops), best[1], best[0]))
    if len(optima) < MIN_BUDGETS or len({N for _, N, _ in optima}) < 2:
        raise DataError(
            f"envelope: {len(optima)} budgets of {ENVELOPE_BUDGETS} show an optimum inside the sizes; "
            f"an exponent needs {MIN_BUDGETS}, with two sizes"
        )
    return _allocation("envelope", optima, dropped, [])


def curves_of(observations: Observations) -> list[tuple[float, Floats, Floats]]:
    """Return (N, tokens, loss) of every run, by tokens. Raises DataError where no column names the run of a point."""
    if not observations.runs:
        raise DataError(
            f"{observations.source}: the envelope needs curves, and no column says which run a point is of (run=column)"
        )
    names = np.array(observations.runs)
    found = []
    for name in dict.fromkeys(observations.runs):
        rows = np.flatnonzero(names == name)
        rows = rows[np.argsort(observations.D[rows])]
        found.append((float(observations.N[rows[0]]), observations.D[rows], observations.y[rows]))
    return found


def budgets(log_c: Floats) -> list[NDArray[np.intp]]:
    """Return the rows of each budget: neighbours in FLOPs no further apart than a tenth."""
    order = np.argsort(log_c, kind="stable")
    breaks = np.flatnonzero(np.diff(log_c[order]) > np.log1p(SAME_BUDGET)) + 1
    return list(np.split(order, breaks))


def _parabola(log_n: Floats, loss: Floats) -> tuple[float, float] | str:
    """Return ln N and loss at the vertex, or why there is none."""
    if len(np.unique(log_n)) < MIN_SIZES:
        return f"{len(np.unique(log_n))} sizes, {MIN_SIZES} are needed"
    middle = log_n.mean()
    bend, slope, level = np.polyfit(log_n - middle, loss, 2)
    if bend <= 0:
        return "the losses do not curve upwards"
    at = middle - slope / (2 * bend)
    if not log_n.min() < at < log_n.max():
        return f"the vertex N = {np.exp(at):.3g} lies outside the sizes tried"
    return float(at), float(level - slope**2 / (4 * bend))


def _interpolation(log_n: Floats, loss: Floats) -> tuple[float, float] | str:
    """Return ln N and loss at the lowest point of an Akima spline through the best loss of each size."""
    from scipy.interpolate import Akima1DInterpolator  # only now: it takes as long as a fit

    sizes, which = np.unique(log_n, return_inverse=True)
    if len(sizes) < MIN_SIZES:
        return f"{len(sizes)} sizes, {MIN_SIZES} are needed"
    best = np.full(len(sizes), np.inf)
    np.minimum.at(best, which, np.log(loss))
    fine = np.linspace(sizes[0], sizes[-1], 100 * len(sizes))
    curve = Akima1DInterpolator(sizes, best)(fine)
    at = int(curve.argmin())
    if at in (0, len(fine) - 1):
        return f"the lowest loss is at the edge, N = {np.exp(fine[at]):.3g}"
    return float(fine[at]), float(np.exp(curve[at]))


VERTICES: dict[str, Callable[[Floats, Floats], tuple[float, float] | str]] = {
    "parabola": _parabola,
    "interpolation": _interpolation,
}


def _line(log_c: Floats, log_n: Floats) -> tuple[float, float]:
    slope, level = np.polyfit(log_c, log_n, 1)
    return float(slope), float(level)


def _allocation(
    approach: str, optima: list[tuple[float, float, float]], dropped: list[str], slopes: list[float]
) -> Allocation:
    table = np.log(np.array(optima)[:, :2])
    a, level = _line(table[:, 0], table[:, 1])
    low, high = np.percentile(slopes, [2.5, 97.5]) if len(slopes) > 1 else (a, a)
    return Allocation(
        approach=approach,
        a=a,
        b=1 - a,
        coefficient=float(np.exp(level)),
        interval=(float(low), float(high)) if len(slopes) > 1 else None,
        optima=optima,
        dropped=dropped,
    )
