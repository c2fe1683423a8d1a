"""The figures of every published check of the analysis: what our fits give on the data of the papers, and on synthetic
data where a paper released none. `benchmarks/published.py [--json]`; data come from ISOFLOP_SHARED (default ../shared).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from analysis import fit, laws, read_table  # noqa: E402
from analysis.allocation import isoflop  # noqa: E402
from analysis.compare import compare  # noqa: E402
from analysis.hpc import scaling  # noqa: E402
from analysis.step_law import StepLaw, Sweep  # noqa: E402
from benchmarks.laws import epoch, over_trained, stack  # noqa: E402
from tests.analysis.studies import measure, outcomes  # noqa: E402

SHARED = Path(os.environ.get("ISOFLOP_SHARED", ROOT.parent / "shared")) / "data" / "scaling"
SEEDS = range(20)
Figures = dict[str, Any]


def main() -> None:
    """Print the figures of each check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    found = {name: check() for name, check in CHECKS.items()}
    if parser.parse_args().json:
        print(json.dumps(found, indent=1))
        return
    for name, figures in found.items():
        print(name, *(f"  {what}: {_short(value)}" for what, value in figures.items()), sep="\n")


def chinchilla() -> Figures:
    """Return the fit of the 240 points, with standard errors of 1,000 resamples."""
    found = fit("chinchilla", epoch(), bootstrap=1000)
    errors = {f"standard error of {name}": found.stderr[name] for name in ("E", "alpha", "beta")}
    return {"objective": found.objective, **found.params, **errors, "warnings": found.warnings}


def parscale() -> Figures:
    """Return the coefficients on Stack-V2 and R^2."""
    points = stack()
    found = fit("parscale", points, bootstrap=0)
    predicted = points.y * np.exp(-np.array(found.residuals))
    unexplained = np.square(points.y - predicted).sum() / np.square(points.y - points.y.mean()).sum()
    return {"objective": found.objective, **found.params, "R2": 1 - unexplained}


def over_training() -> Figures:
    """Return the errors, in percent, on the two runs that Gadre et al. hold out."""
    runs = read_table(SHARED / "gadre_rpj.csv", {"N": "N", "D": "D", "L": "loss_c4_val"})
    M = runs.columns(("M",))["M"]
    found = fit("chinchilla_tied", over_trained(), scale="linear", delta=1.0, bootstrap=0)
    held_out = np.flatnonzero(((runs.N > 1e9) & (M > 600)) | (runs.N > 5e9))
    return {
        f"error at N = {runs.N[i]:.3g}, D = {runs.D[i]:.3g}, %": 100
        * abs(found.predict(N=runs.N[i], D=runs.D[i]) / runs.y[i] - 1)
        for i in held_out
    }


def isoflop_exponents() -> Figures:
    """Return our exponent and that through the optima which Porian et al. released, for each of four settings."""
    found = {}
    for warmup, decay, counted in (
        ("long", "kaplan", "kaplan"),
        ("long", "kaplan", "standard"),
        ("short", "kaplan", "standard"),
        ("short", "chinchilla", "standard"),
    ):
        where = {"warmup": warmup, "decay": decay, "param_count": counted}
        released = [
            row
            for row in _rows("porian_optimal_pairs_rw_base.csv")
            if row["n_star"] and all(row[name] == text for name, text in where.items())
        ]
        C, N, spread = (
            np.array([float(row[name]) for row in released]) for name in ("flops", "n_star", "n_star_std")
        )
        columns = {"N": "n", "C": "flops", "L": "loss", "size": "param_count"}
        points = read_table(SHARED / "porian_isoflop_points_rw_base.csv", columns, where=where)
        ours = isoflop(points, vertex="interpolation", bootstrap=20).a
        found[f"{warmup} warm-up, {decay} decay, {counted} count"] = [
            ours,
            float(np.polyfit(np.log(C), np.log(N), 1, w=1 / spread)[0]),
        ]
    return found


def step_law() -> Figures:
    """Return the released formulas' excess loss over 17 cells, and their coefficients out of 1,000 resamples."""
    table = _rows("steplaw_dense_lr_bs_loss.csv")
    N, D, rate, batch, loss = (
        np.array([float(row[name]) for row in table]) for name in ("N", "D", "lr", "bs", "smooth loss")
    )
    sweep = Sweep(N, D, rate, 2048 * batch, loss)
    released = _rows("steplaw_1000_bootstrap_params.csv")
    mean = {name: float(np.mean([float(row[name]) for row in released])) for name in released[0]}
    excess = sweep.excess(StepLaw())
    return {
        "cells": len(excess),
        "mean excess, %": 100 * excess.mean(),
        "largest, %": 100 * excess.max(),
        "least curvature of a cell": float(sweep.bowls().min()),
        "factors of rate and batch": [
            float(np.exp(mean["lr_intercept"])),
            float(np.exp(mean["bs_intercept"])),
        ],
        "exponents": [mean["lr_coefN"], mean["lr_coefD"], mean["bs_coefD"]],
    }


def sigmoid() -> Figures:
    """Return the asymptote by how much of the curve is known (R0 = 0.22, noise 0.006): mean and spread over seeds."""
    truth, found = {"A": 0.61, "R0": 0.22, "B": 1.9, "C_mid": 2500.0}, {}
    for end in (2000, 4000, 8000, 16000):
        C = np.arange(100.0, end + 1, 100.0)
        tops, refused = [], 0
        for seed in SEEDS:
            noise = 0.006 * np.random.default_rng(seed).standard_normal(len(C))
            points = measure("rl_sigmoid", {"C": C}, outcomes("rl_sigmoid", truth, {"C": C}) + noise)
            one = fit("rl_sigmoid", points, hold={"R0": 0.22}, bootstrap=100)
            low, high = one.intervals["A"]
            tops.append(one.params["A"])
            refused += "A" in one.unidentified or high - low > 0.2
        found[f"data to {end / 2500:.1f} C_mid: A, spread, refused of {len(SEEDS)}"] = [
            float(np.mean(tops)),
            float(np.std(tops)),
            refused,
        ]
    return found


def efficiency() -> Figures:
    """Return the worst errors of K_max and N0, 1 % noise, over seeds."""
    N, worst = np.array([0.5, 1.5, 3, 7, 14, 32, 72]) * 1e9, {"K_max": 0.0, "N0": 0.0}
    x = dict(zip("XN", (c.ravel() for c in np.meshgrid(np.geomspace(1e2, 1e5, 25), N)), strict=True))
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        truth = {"K_max": 0.32, "N0": 6e9, **{f"E[{n:g}]": rng.uniform(-0.5, 0.5) for n in N}}
        y = outcomes("rl_power_kn", truth, x) * np.exp(0.01 * rng.standard_normal(len(x["N"])))
        found = fit("rl_power_kn", measure("rl_power_kn", x, y), bootstrap=0).params
        worst = {name: max(worst[name], 100 * abs(found[name] / truth[name] - 1)) for name in worst}
    return {f"worst error of {name} over {len(SEEDS)} seeds, %": value for name, value in worst.items()}


def devices() -> Figures:
    """Return the worst error of the USL's peak, 1 % noise, and how far Karp and Flatt's fraction is from Amdahl's."""
    p, want, worst = 2.0 ** np.arange(13), np.sqrt(0.98 / 1e-5), 0.0
    for seed in SEEDS:
        scatter = np.exp(0.01 * np.random.default_rng(seed).standard_normal(13))
        y = outcomes("usl", {"g": 1000.0, "s": 0.02, "k": 1e-5}, {"p": p}) * scatter
        found = fit("usl", measure("usl", {"p": p}, y), bootstrap=0)
        worst = max(worst, 100 * abs(float(laws.get("usl").peak(found.params)) / want - 1))
    t = outcomes("amdahl", {"t1": 100.0, "f": 0.05}, {"p": p})
    rows = scaling(measure("amdahl", {"p": p}, t), bootstrap=0).rows[1:]
    return {
        f"worst error of the peak over {len(SEEDS)} seeds, %": worst,
        "largest |serial fraction - 0.05|": max(abs(row.serial_fraction - 0.05) for row in rows),
    }


def logarithm_or_power() -> Figures:
    """Return the median over seeds by which AICc prefers a power law, for a steep and for a flat one."""
    x, found = np.geomspace(1, 1e3, 20), {}
    for gamma in (0.3, 0.01):
        gaps = []
        for seed in SEEDS:
            noise = np.exp(0.003 * np.random.default_rng(seed).standard_normal(20))
            rows = compare(measure("power", {"x": x}, 0.9 * x**-gamma * noise), ["log_linear", "power"])
            at = {row.law: row.aicc for row in rows}
            gaps.append(at["log_linear"] - at["power"])
        found[f"gamma = {gamma}: AICc of the line over the power's, median of {len(SEEDS)} seeds"] = float(
            np.median(gaps)
        )
    return found


def _rows(name: str) -> list[dict[str, str]]:
    with (SHARED / name).open() as file:
        return list(csv.DictReader(file))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "none"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


CHECKS: Mapping[str, Callable[[], Figures]] = {
    "chinchilla (arXiv 2404.10102)": chinchilla,
    "parscale (arXiv 2505.10475)": parscale,
    "chinchilla_tied, over-training (Gadre et al. 2024; published 0.7103 and 0.7320)": over_training,
    "isoFLOP exponents, ours and released (Porian et al. 2024)": isoflop_exponents,
    "step law (arXiv 2503.04715)": step_law,
    "rl_sigmoid (arXiv 2510.13786; A = 0.61)": sigmoid,
    "rl_power_kn (arXiv 2509.25300)": efficiency,
    "usl and amdahl": devices,
    "log_linear against power": logarithm_or_power,
}

if __name__ == "__main__":
    main()
