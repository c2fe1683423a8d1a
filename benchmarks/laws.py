"""Every law against a method that its field fits it by: the objective that each reaches, and CPU-seconds.

A method's starts, formula and numeric gradients are those of the publication where there is one, else scipy's
`curve_fit` as a notebook calls it; formulas are written anew, so that they test ours. Where all starts would take
minutes a sample is run and the time scaled up, as the row says. Both objectives are the sum of Huber terms that ours
minimises. Usage: `benchmarks/laws.py [--json] [--only LAW]`, also as `benchmarks/fit.py --laws`; published points come
from ISOFLOP_SHARED (default ../shared), a law without them is fitted to its own example with 0.3 % noise.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brute, least_squares, minimize, nnls

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis import Observations, fit, laws, read_table  # noqa: E402
from analysis.step_law import Sweep  # noqa: E402
from tests.analysis.studies import measure, outcomes, typical  # noqa: E402

SHARED = Path(os.environ.get("ISOFLOP_SHARED", ROOT.parent / "shared")) / "data" / "scaling"
NOISE = 0.003
SQUARES = 1.0
"""A delta that no residual here reaches."""
SAME = 1e-9
"""Relative difference of two objectives that end at one minimum."""
Inputs = Mapping[str, np.ndarray]
Answer = tuple[np.ndarray, float]
"""Parameters of the formula, and the share of the method's starts that was run."""


@dataclass(frozen=True)
class Task:
    """Points, and what is minimised over the parameters of a formula."""

    points: Observations
    formula: Callable[[Inputs, np.ndarray], np.ndarray]
    delta: float
    scale: str

    def residual(self, p: np.ndarray) -> np.ndarray:
        """Return ln predicted - ln observed, or their difference over the mean outcome."""
        with np.errstate(all="ignore"):
            predicted = self.formula(self.points.x, p)
            if self.scale == "linear":
                found = (predicted - self.points.y) / self.points.y.mean()
            else:
                found = np.log(predicted) - np.log(self.points.y)
        return np.where(np.isfinite(found), found, 1e6)

    def objective(self, p: np.ndarray) -> float:
        """Return the sum of Huber terms."""
        size = np.abs(self.residual(p))
        return float(np.where(size <= self.delta, size**2 / 2, self.delta * (size - self.delta / 2)).sum())


@dataclass(frozen=True)
class Method:
    """How a law is fitted elsewhere."""

    law: str
    name: str
    formula: Callable[[Inputs, np.ndarray], np.ndarray]
    solve: Callable[[Task], Answer]
    points: Callable[[], Observations] | None = None
    """None: the law's own example."""
    delta: float = SQUARES
    scale: str = "log"
    hold: Mapping[str, float] = field(default_factory=dict)


def squares_from(*starts: Sequence[float], low: float = -np.inf) -> Callable[[Task], Answer]:
    """Return Levenberg and Marquardt's method from each of the starts, within bounds where `low` is one."""

    def solve(task: Task) -> Answer:
        how: dict[str, Any] = {"bounds": (low, np.inf)} if np.isfinite(low) else {"method": "lm"}
        ends = [least_squares(task.residual, start, max_nfev=10000, **how) for start in starts]
        return min(ends, key=lambda end: end.cost).x, 1.0

    return solve


def lbfgs_from(*axes: Sequence[float], run: int, low: float | None = None) -> Callable[[Task], Answer]:
    """Return L-BFGS-B with numeric gradients from a grid of starts, of which `run` are drawn."""

    def solve(task: Task) -> Answer:
        grid = np.array(list(product(*axes)), dtype=float)
        drawn = np.random.default_rng(0).permutation(grid)[:run]
        bounds = None if low is None else [(low, None)] * len(axes)
        ends = [minimize(task.objective, start, method="L-BFGS-B", bounds=bounds) for start in drawn]
        return min(ends, key=lambda end: end.fun).x, len(drawn) / len(grid)

    return solve


def line(*terms: Callable[[Inputs], np.ndarray], logarithm: bool = False) -> Callable[[Task], Answer]:
    """Return linear regression of the outcome, or of its logarithm, on a constant and these terms."""

    def solve(task: Task) -> Answer:
        x = task.points.x
        columns = np.stack([np.ones(len(task.points)), *(term(x) for term in terms)], axis=1)
        y = np.log(task.points.y) if logarithm else task.points.y
        return np.linalg.lstsq(columns, y, rcond=None)[0], 1.0

    return solve


def broken_power_grid(task: Task) -> Answer:
    """Return the authors' two steps: the best of a grid of 163,840 points, then curve_fit of logarithms from there."""

    def coarse(p: np.ndarray) -> float:
        return float(
            np.square(task.residual(p * [1, 0, 1, 1, 0, 1] + [0, grow(p[1]), 0, 0, grow(p[4]), 0])).sum()
        )

    def grow(exponent: float) -> float:
        return float(1.25**exponent - 0.9)

    grid = (
        slice(0, 1, 0.1),
        slice(0, 40, 2.5),
        *[slice(0, 1, 0.25)] * 2,
        slice(0, 40, 2.5),
        slice(0, 1, 0.25),
    )
    p = brute(coarse, grid, finish=None)
    start = [p[0], grow(p[1]), p[2], p[3], grow(p[4]), p[5]]
    return least_squares(task.residual, start, method="lm", max_nfev=100000).x, 1.0


def sigmoid_grid(task: Task) -> Answer:
    """Return least squares from the best point of a grid of asymptotes and midpoints, each with its best exponent.

    Only those near the law's example are run.
    """
    tops, middles = np.arange(0.23, 1.0, 0.005), np.geomspace(100, 40000, 100)
    near_top, near_middle = tops[np.abs(tops - 0.61) < 0.025], middles[np.abs(np.log(middles / 2500)) < 0.2]
    cells = [
        least_squares(lambda b, A=A, C=C: task.residual(np.array([A, b[0], C])), [1.0])
        for A, C in product(near_top, near_middle)
    ]
    at = int(np.argmin([cell.cost for cell in cells]))
    A, C = list(product(near_top, near_middle))[at]
    end = least_squares(task.residual, [A, cells[at].x[0], C], x_scale=[1, 1, 1000])
    return end.x, len(cells) / (len(tops) * len(middles))


def random_starts(
    draw: Callable[[np.random.Generator], list[float]], count: int = 20
) -> Callable[[Task], Answer]:
    """Return least squares from so many random starts."""
    rng = np.random.default_rng(0)
    return squares_from(*(draw(rng) for _ in range(count)))


def ring(x: Inputs) -> np.ndarray:
    """Return messages and bytes of a ring all-reduce, (n, 2)."""
    return np.stack([2 * (x["p"] - 1), 2 * (x["p"] - 1) / x["p"] * x["n"]], axis=1)


def slots(x: Inputs) -> np.ndarray:
    """Return the slots of a pipeline step, and one, (n, 2)."""
    return np.stack([x["m"] + x["s"] - 1, np.ones_like(x["m"])], axis=1)


def costs(columns: Callable[[Inputs], np.ndarray]) -> Callable[[Task], Answer]:
    """Return non-negative least squares of relative errors, then curve_fit of logarithms from there."""

    def solve(task: Task) -> Answer:
        table = columns(task.points.x)
        start, _ = nnls(table / task.points.y[:, None], np.ones(len(task.points)))
        return least_squares(task.residual, start, x_scale=np.maximum(start, 1e-12)).x, 1.0

    return solve


def epoch() -> Observations:
    """Return the 240 points of arXiv 2404.10102."""
    columns = {"N": "Model Size", "C": "Training FLOP", "L": "loss"}
    return read_table(SHARED / "epoch_chinchilla_245.csv", columns).drop_highest_loss(5)


def over_trained() -> Observations:
    """Return the five small runs that Gadre et al. fit."""
    runs = read_table(SHARED / "gadre_rpj.csv", {"N": "N", "D": "D", "L": "loss_c4_val"})
    M = runs.columns(("M",))["M"]
    return runs.take(
        np.flatnonzero(((runs.N < 1e9) & (np.abs(M - 20) < 1)) | ((runs.N < 2e7) & (np.abs(M - 320) < 1)))
    )


def stack() -> Observations:
    """Return ParScale's 24 runs on Stack-V2."""
    return read_table(
        SHARED / "parscale_stack.csv", {"N": "n_params_nonemb", "P": "P", "L": "loss"}, ("N", "P")
    )


def near_best() -> Observations:
    """Return the runs of the dense Step Law table whose loss is near their cell's best, with their learning rates."""
    with (SHARED / "steplaw_dense_lr_bs_loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    N, D, rate, batch, loss = (
        np.array([float(row[name]) for row in rows]) for name in ("N", "D", "lr", "bs", "smooth loss")
    )
    keep = Sweep(N, D, rate, batch, loss).near_best()
    return measure("learning_rate", {"N": N[keep], "D": D[keep]}, rate[keep])


def one_break() -> Observations:
    """Return 24 points around a break within the authors' grid."""
    x = {"x": np.geomspace(1, 1e4, 24)}
    truth = {"A": 2.0, "E": 0.5, "alpha": 0.1, "bend": 0.4, "x_break": 100.0, "width": 0.3}
    scatter = np.exp(NOISE * np.random.default_rng(3).standard_normal(24))
    return measure("broken_power", x, outcomes("broken_power", truth, x) * scatter)


SIZES = np.array([0.5, 1.5, 3, 7, 14, 32, 72]) * 1e9
HOFFMANN = (np.arange(0, 26, 5), np.arange(0, 26, 5), np.arange(-1, 1.1, 0.5), *[np.arange(0, 2.1, 0.5)] * 2)


def hoffmann(x: Inputs, p: np.ndarray, D: np.ndarray | None = None) -> np.ndarray:
    """Return exp(a) N^-alpha + exp(b) D^-beta + exp(e)."""
    a, b, e, alpha, beta = p[:5]
    ln_D = np.log(x["D"] if D is None else D)
    return np.exp(a - alpha * np.log(x["N"])) + np.exp(b - beta * ln_D) + np.exp(e)


def repeated(x: Inputs, p: np.ndarray) -> np.ndarray:
    """Return Hoffmann's law of what U unique tokens, seen D / U times, are worth; p[5] is ln R."""
    R, U = np.exp(p[5]), np.minimum(x["U"], x["D"])
    return hoffmann(x, p, U + U * R * (1 - np.exp(-(x["D"] / U - 1) / R)))


def tied_sigmoid(x: Inputs, p: np.ndarray) -> np.ndarray:
    """Return the reward of recipe g, 1 or 2, at C; p is A, two exponents, two midpoints' logarithms."""
    B, middle = np.where(x["g"] == 1, p[1], p[2]), np.where(x["g"] == 1, p[3], p[4])
    return 0.22 + (p[0] - 0.22) / (1 + np.exp(B * (middle - np.log(x["C"]))))


def efficiency(x: Inputs, p: np.ndarray) -> np.ndarray:
    """Return the loss by X and size; p is K_max, ln N0 and an intercept a size."""
    k = p[0] / (1 + np.exp(p[1]) / x["N"])
    return np.exp(p[2:][np.searchsorted(SIZES, x["N"] * 0.999)] - k * np.log(x["X"]))


METHODS = [
    Method(
        "chinchilla",
        "L-BFGS-B, 4,500 starts (Hoffmann et al.)",
        hoffmann,
        lbfgs_from(*HOFFMANN, run=60),
        epoch,
        1e-3,
    ),
    Method(
        "chinchilla_tied",
        "curve_fit, 128 starts (Gadre et al.)",
        lambda x, p: p[0] * x["N"] ** p[2] + p[1] * 6 ** (p[2] / 2) * x["D"] ** p[2] + p[3],
        squares_from(
            *product([1e2, 3e2, 1e3, 3e3], [1e2, 3e2, 1e3, 3e3], [-0.1, -0.3], [0.0, 1.0, 2.0, 10.0])
        ),
        over_trained,
        scale="linear",
    ),
    Method(
        "kaplan",
        "curve_fit, 4 starts",
        lambda x, p: (np.exp(p[2] / p[3] * (p[0] - np.log(x["N"]))) + np.exp(p[1] - np.log(x["D"]))) ** p[3],
        squares_from(*product([30.0], [30.0], [0.05, 0.1], [0.05, 0.1])),
    ),
    Method(
        "power",
        "regression of logarithms",
        lambda x, p: np.exp(p[0] + p[1] * np.log(x["x"])),
        line(lambda x: np.log(x["x"]), logarithm=True),
    ),
    Method(
        "power_offset",
        "curve_fit, 3 starts (Gadre et al.)",
        lambda x, p: p[0] * x["x"] ** p[1] + p[2],
        squares_from(*product([30.0, 300.0, 3000.0], [-0.1], [0.0])),
        scale="linear",
    ),
    Method(
        "log_linear",
        "regression on ln x",
        lambda x, p: p[0] + p[1] * np.log(x["x"]),
        line(lambda x: np.log(x["x"])),
        scale="linear",
    ),
    Method(
        "broken_power",
        "grid of 163,840, then curve_fit (Caballero et al.)",
        lambda x, p: p[0] + p[1] * x["x"] ** -p[2] * (1 + (x["x"] / p[4]) ** (1 / p[5])) ** (-p[3] * p[5]),
        broken_power_grid,
        one_break,
    ),
    Method(
        "data_constrained",
        "L-BFGS-B, 13,500 starts (after Hoffmann et al.)",
        repeated,
        lbfgs_from(*HOFFMANN, [0.0, 2.0, 4.0], run=60),
        delta=1e-3,
    ),
    Method(
        "parscale",
        "L-BFGS-B, 300 starts (Chen et al.)",
        lambda x, p: p[0] + (p[1] * 1e9 / (x["N"] * (p[3] * np.log(x["P"]) + 1))) ** p[2],
        lbfgs_from(
            np.exp([-1, -0.5, 0]),
            np.exp([-4, -2, 0, 2, 4]),
            [0, 0.5, 1, 1.5, 2],
            [0.2, 0.4, 0.6, 0.8],
            run=100,
            low=1e-8,
        ),
        stack,
        1e-3,
    ),
    Method(
        "learning_rate",
        "regression of logarithms (Step Law)",
        lambda x, p: np.exp(p[0] + p[1] * np.log(x["N"]) + p[2] * np.log(x["D"])),
        line(lambda x: np.log(x["N"]), lambda x: np.log(x["D"]), logarithm=True),
        near_best,
    ),
    Method(
        "rl_sigmoid",
        "grid of 15,400, then least squares (ScaleRL)",
        lambda x, p: 0.22 + (p[0] - 0.22) / (1 + (p[2] / x["C"]) ** p[1]),
        sigmoid_grid,
        scale="linear",
        hold={"R0": 0.22},
    ),
    Method(
        "rl_sigmoid_tied",
        "curve_fit, 20 random starts",
        tied_sigmoid,
        random_starts(lambda rng: [rng.uniform(0.3, 1), *rng.uniform(0.5, 4, 2), *rng.uniform(5, 10, 2)]),
        scale="linear",
        hold={"R0": 0.22},
    ),
    Method(
        "rl_power_kn",
        "least squares, 20 random starts in the authors' bounds",
        efficiency,
        random_starts(lambda rng: [rng.uniform(0, 2), np.log(rng.uniform(1e8, 1e11)), *np.zeros(7)]),
    ),
    Method(
        "amdahl", "curve_fit", lambda x, p: p[0] * (p[1] + (1 - p[1]) / x["p"]), squares_from([50.0, 0.1])
    ),
    Method(
        "gustafson",
        "curve_fit",
        lambda x, p: p[0] * (x["p"] - p[1] * (x["p"] - 1)),
        squares_from([500.0, 0.1]),
    ),
    Method(
        "usl",
        "bounded least squares (as the R package usl)",
        lambda x, p: p[0] * x["p"] / (1 + p[1] * (x["p"] - 1) + p[2] * x["p"] * (x["p"] - 1)),
        squares_from([500.0, 0.1, 0.01], low=0.0),
    ),
    Method("alpha_beta", "NNLS, then curve_fit", lambda x, p: ring(x) @ p, costs(ring)),
    Method("pipeline_bubble", "NNLS, then curve_fit", lambda x, p: slots(x) @ p, costs(slots)),
    Method(
        "datastore",
        "curve_fit, 3 starts",
        lambda x, p: p[0] * x["S"] ** p[1] + p[2],
        squares_from(*product([3.0, 30.0, 300.0], [-0.1], [0.0])),
        scale="linear",
    ),
    Method(
        "recommender",
        "regression on ln C",
        lambda x, p: p[0] + p[1] * np.log(x["C"]),
        line(lambda x: np.log(x["C"])),
        scale="linear",
    ),
]


def rows(only: str = "") -> list[dict[str, Any]]:
    """Return a row a law: both objectives, both CPU-seconds, and their ratios. A law without a method is an error."""
    if missing := set(laws.names()) - {method.law for method in METHODS}:
        raise SystemExit(f"no method stands against {', '.join(sorted(missing))}")
    return [row(method) for method in METHODS if only in method.law]


def row(method: Method) -> dict[str, Any]:
    """Return what one method and our fit reach on the same points."""
    points = method.points() if method.points and SHARED.exists() else typical(method.law, NOISE)
    task = Task(points, method.formula, method.delta, method.scale)
    (p, share), theirs_s = timed(lambda: method.solve(task))
    ours, ours_s = timed(
        lambda: fit(method.law, points, hold=method.hold, delta=method.delta, scale=method.scale, bootstrap=0)
    )
    return {
        "law": method.law,
        "points": len(points),
        "ours_objective": ours.objective,
        "method_objective": task.objective(p),
        "never_above": ours.objective
        <= task.objective(p) * (1 + SAME) + np.finfo(float).eps ** 2 * len(points),
        "ours_cpu_s": ours_s,
        "method_cpu_s": theirs_s / share,
        "cpu_ratio": theirs_s / share / ours_s,
        "method": method.name,
        "share_run": share,
    }


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `action` returns and the CPU-seconds of this process that it took."""
    began_s = time.process_time()
    return action(), time.process_time() - began_s


def text(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        f"{'law':<17}{'ours':>15}{'method':>15}  {'above':<6}{'CPU-s':>8}{'method':>9}{'ratio':>8}  method"
    ]
    lines += [
        f"{one['law']:<17}{one['ours_objective']:>15.8e}{one['method_objective']:>15.8e}  "
        f"{'no' if one['never_above'] else 'YES':<6}{one['ours_cpu_s']:>8.3f}{one['method_cpu_s']:>9.3f}"
        f"{one['cpu_ratio']:>8.1f}  {one['method']}"
        + (f"; {one['share_run']:.1%} of it was run" if one["share_run"] < 1 else "")
        for one in found
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--only", default="", metavar="LAW", help="laws whose names hold this")
    options = parser.parse_args()
    found = rows(options.only)
    print(json.dumps(found, indent=1) if options.json else text(found))


if __name__ == "__main__":
    main()
