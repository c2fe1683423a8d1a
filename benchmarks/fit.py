"""Our fit of the Chinchilla law against the usual recipe, in CPU-seconds, with the objective that each reaches.

Ours is one fit from 64 checked starts with 1,000 bootstrap resamples. The recipe is L-BFGS-B with numeric gradients
from each of a grid of 4,500 starts, and again from the optimum for each resample; of both only a sample is run and
scaled up, as the output says. A sample of our resamples is held against a tight optimum of scipy's. Usage:
`benchmarks/fit.py [--json] [--check-all] [--laws]`, the last with what `benchmarks/laws.py` finds. The points
are the 240 of arXiv 2404.10102 when ISOFLOP_SHARED (default ../shared) has them, else synthetic ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis import Observations, fit, read_table  # noqa: E402
from analysis.resampling import Resampling, weights_of  # noqa: E402
from benchmarks import laws  # noqa: E402

SHARED = Path(os.environ.get("ISOFLOP_SHARED", ROOT.parent / "shared"))
TABLE = SHARED / "data" / "scaling" / "epoch_chinchilla_245.csv"
DELTA = 1e-3
GRID = (np.arange(0, 26, 5), np.arange(0, 26, 5), np.arange(-1, 1.1, 0.5), *[np.arange(0, 2.1, 0.5)] * 2)
STARTS, BOOTSTRAP = 64, 1000
SAMPLED_STARTS, SAMPLED_RESAMPLES, CHECKED_RESAMPLES = 100, 20, 100
CLOSE = 1e-6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--check-all", action="store_true", help="hold every resample against scipy")
    parser.add_argument("--laws", action="store_true", help="hold every law against its field's method too")
    options = parser.parse_args()
    found = measure(observations(), BOOTSTRAP if options.check_all else CHECKED_RESAMPLES)
    if options.laws:
        found["laws"] = laws.rows()
    print(json.dumps(found, indent=1) if options.json else text(found))


def measure(points: Observations, checked: int) -> dict[str, Any]:
    """Return CPU-seconds and objectives of both, ratios included; `checked` resamples are held against scipy."""
    ours, ours_s = timed(lambda: fit("chinchilla", points, starts=STARTS, bootstrap=0))
    resampled, with_bootstrap_s = timed(lambda: fit("chinchilla", points, starts=STARTS, bootstrap=BOOTSTRAP))
    starts = np.array(list(itertools.product(*GRID)), dtype=float)
    sampled = np.random.default_rng(0).choice(starts, SAMPLED_STARTS, replace=False)
    ends, naive_s = timed(lambda: [recipe(points, start, np.ones(len(points))) for start in sampled])
    objectives = np.array([end.fun for end in ends])
    best = ends[int(objectives.argmin())].x
    weights = weights_of(points, Resampling(), range(BOOTSTRAP), seed=0)
    _, resamples_s = timed(lambda: [recipe(points, best, row) for row in weights[:SAMPLED_RESAMPLES]])
    whole = len(resampled.sample) == BOOTSTRAP
    near = [
        objective(points, in_logarithms(sample), row) <= tight(points, best, row) * (1 + CLOSE)
        for sample, row in zip(resampled.sample[:checked], weights, strict=False)
    ]
    naive_s *= len(starts) / SAMPLED_STARTS
    resamples_s *= BOOTSTRAP / SAMPLED_RESAMPLES
    bootstrap_s = with_bootstrap_s - ours_s
    return {
        "source": points.source,
        "points": len(points),
        "fit": {
            "ours_cpu_s": ours_s,
            "ours_objective": ours.objective,
            "recipe_cpu_s": naive_s,
            "recipe_objective": float(objectives.min()),
            "recipe_starts_within_1e-6": float((objectives <= ours.objective * (1 + 1e-6)).mean()),
            "ratio": naive_s / ours_s,
            "ratio_with_bootstrap": naive_s / with_bootstrap_s,
            "starts": ours.starts_tried,
            "starts_reached_best": ours.starts_reached_best,
            "scaled": f"{SAMPLED_STARTS} of {len(starts)} starts were run",
        },
        "bootstrap": {
            "ours_cpu_s": bootstrap_s,
            "recipe_cpu_s": resamples_s,
            "ratio": resamples_s / bootstrap_s,
            "all_converged": whole,
            "share_within_1e-6_of_scipy": float(np.mean(near)),
            "checked": len(near),
            "scaled": f"{SAMPLED_RESAMPLES} of {BOOTSTRAP} resamples were run by the recipe",
        },
    }


def objective(points: Observations, theta: np.ndarray, weights: np.ndarray) -> float:
    """Return the paper's objective, in (ln A, ln B, ln E, alpha, beta), as a sum; shares no code with ours."""
    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * np.log(points.N), b - beta * np.log(points.D), np.full(len(points), e)])
    size = np.abs(np.logaddexp.reduce(terms) - np.log(points.L))
    return float((weights * np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2))).sum())


def recipe(points: Observations, start: np.ndarray, weights: np.ndarray) -> Any:
    """Return scipy's answer for one start."""
    return minimize(lambda theta: objective(points, theta, weights), start, method="L-BFGS-B")


def tight(points: Observations, start: np.ndarray, weights: np.ndarray) -> float:
    """Return the least objective that scipy finds from here when it is not allowed to stop early."""
    theta = start
    for method in ("L-BFGS-B", "BFGS"):  # scaled, so that no default tolerance stops early
        theta = minimize(lambda theta: 1e4 * objective(points, theta, weights), theta, method=method).x
    return objective(points, theta, weights)


def in_logarithms(sample: np.ndarray) -> np.ndarray:
    """Return (A, B, E, alpha, beta) as (ln A, ln B, ln E, alpha, beta)."""
    return np.append(np.log(sample[:3]), sample[3:])


def observations() -> Observations:
    """Return the published points, or 240 synthetic ones where they are missing."""
    if TABLE.exists():
        columns = {"N": "Model Size", "C": "Training FLOP", "L": "loss"}
        return read_table(TABLE, columns).drop_highest_loss(5)
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7.5, 10, 240), 10 ** rng.uniform(9, 11.5, 240)
    L = (1.82 + 478 / N**0.347 + 2143 / D**0.367) * np.exp(0.003 * rng.standard_normal(240))
    return Observations.of_runs(N, D, L, tuple(map(str, range(240))), f"synthetic, {TABLE} is missing")


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `action` returns and the CPU-seconds of this process that it took."""
    began_s = time.process_time()
    return action(), time.process_time() - began_s


def text(found: dict[str, Any]) -> str:
    """Return the figures as lines."""
    one, many = found["fit"], found["bootstrap"]
    return "\n".join(
        [
            f"{found['points']} points: {found['source']}",
            f"one fit, ours     {one['ours_cpu_s']:9.2f} CPU-s   objective {one['ours_objective']:.12f}",
            f"one fit, recipe   {one['recipe_cpu_s']:9.2f} CPU-s   objective {one['recipe_objective']:.12f}   "
            f"{one['ratio']:.0f} times ours; {one['scaled']}, {one['recipe_starts_within_1e-6']:.0%} reached ours",
            f"with {BOOTSTRAP} resamples and {one['starts']} starts the recipe's starts alone take "
            f"{one['ratio_with_bootstrap']:.0f} times as long",
            f"{BOOTSTRAP} resamples, ours   {many['ours_cpu_s']:6.2f} CPU-s   "
            f"{many['share_within_1e-6_of_scipy']:.0%} of {many['checked']} within 1e-6 of a tight optimum",
            f"{BOOTSTRAP} resamples, recipe {many['recipe_cpu_s']:6.2f} CPU-s   {many['ratio']:.0f} times ours; "
            f"{many['scaled']}",
            *([laws.text(found["laws"])] if "laws" in found else []),
        ]
    )


if __name__ == "__main__":
    main()
