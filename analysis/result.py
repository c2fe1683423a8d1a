"""What a fit found, with all that is needed to judge it, to use it and to repeat it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy
from numpy.typing import NDArray

from analysis import laws
from analysis.errors import DataError
from analysis.finite import finite
from analysis.table import derive

SCHEMA = "isoflop-fit/1"
FAR = 100.0
"""Extrapolation beyond this factor of the fitted range is warned about."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A fitted law. Intervals are 95 %; `objective` is the plain sum of Huber terms.

    `stderr` has the parameters that the data determine, `unidentified` the others.
    """

    law: str
    params: dict[str, float]
    held: dict[str, float]
    """Parameters that were given, not fitted."""
    stderr: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    covariance: dict[str, dict[str, float]]
    """Of the estimator (Gauss-Newton), beside the bootstrap's intervals; empty where it is undefined."""
    objective: float
    n_points: int
    starts_tried: int
    starts_reached_best: int
    gradient_norm: float
    """Largest component of the gradient of the objective divided by n delta."""
    active_bounds: list[str]
    """Parameters that stand at a bound of the fit."""
    unidentified: dict[str, str]
    """Parameters that the data do not determine, and why."""
    warnings: list[str]
    exclusions: list[str]
    delta: float
    scale: str
    """log or linear: what a residual is."""
    tau: float
    """Share of the pull that points above the law have."""
    seed: int
    bootstrap: int
    resampling: str
    bootstrap_undetermined: int
    """Resamples left out because they drew points too few or too alike to determine the law."""
    bootstrap_failed: int
    """Resamples left out because they did not converge."""
    source: str
    data_sha256: str
    flops_convention: str
    size_convention: str
    data_convention: str
    outcome: str
    ranges: dict[str, tuple[float, float]]
    """Lowest and highest of each input."""
    mean_loss: float
    """Mean of the fitted outcomes: what a predictor that knows nothing of the inputs would say."""
    residuals: list[float]
    """ln observed - ln predicted of each point, or the difference on a linear scale."""
    sample: Floats = field(repr=False, compare=False)
    """Parameters of each converged bootstrap resample, (resamples, parameters)."""

    def predict(self, **x: float) -> float:
        """Return the predicted outcome at these inputs, such as N=1e9, D=2e10; what follows from them is derived."""
        values = {name: np.asarray(value) for name, value in self.params.items()}
        return float(laws.get(self.law).predict(values, self._inputs(x)))

    def interval(self, **x: float) -> tuple[float, float] | None:
        """Return the 95 % prediction interval of a run: the law's own spread and that of single runs around it.

        Each resample's prediction is moved by one of the fit's residuals. None without a bootstrap.
        """
        if len(self.sample) < 2:
            return None
        predicted = laws.get(self.law).predict(self.sampled(), self._inputs(x))
        drawn = np.random.default_rng([self.seed, len(self.sample)]).choice(self.residuals, len(predicted))
        moved = predicted * np.exp(drawn) if self.scale == "log" else predicted + drawn
        low, high = np.percentile(moved, [2.5, 97.5])
        return float(low), float(high)

    @property
    def trades(self) -> bool:
        """Whether the law says how to divide compute between size and tokens."""
        return laws.get(self.law).trades

    def compute_optimal(self, flops: float) -> dict[str, Any]:
        """Return N, D, L of the best run of `flops` (C = 6 N D) and the 95 % interval of each; NaN where undefined."""
        law = laws.get(self.law)
        best = law.compute_optimal({name: np.asarray(value) for name, value in self.params.items()}, flops)
        found: dict[str, Any] = {"C": flops, **{name: float(value) for name, value in best.items()}}
        if len(self.sample) > 1:
            spread = law.compute_optimal(self.sampled(), flops)
            found["intervals"] = {
                name: np.nanpercentile(values, [2.5, 97.5]).tolist()
                for name, values in spread.items()
                if np.isfinite(values).any()
            }
        return found

    def far(self, **x: float) -> str:
        """Return a sentence when an input lies far outside the fitted range, else nothing."""
        known = self._inputs(x)
        beyond, name = max(
            (max(float(known[name]) / high, low / float(known[name])), name)
            for name, (low, high) in self.ranges.items()
            if name in known
        )
        return f"{beyond:.0f} times beyond the fitted range of {name}" if beyond > FAR else ""

    def budgets(self) -> list[float]:
        """Return powers of ten of compute from the smallest fitted run to a hundred times the largest."""
        (n_low, n_high), (d_low, d_high) = self.ranges["N"], self.ranges["D"]
        low, high = np.floor(np.log10(6 * n_low * d_low)), np.ceil(np.log10(6 * n_high * d_high)) + 2
        return [float(10**power) for power in np.arange(low, high + 1)]

    def to_json(self) -> dict[str, Any]:
        """Return all but the bootstrap sample as JSON-able data, with the optimum of a few budgets.

        What is not a number becomes None, since JSON has no word for it.
        """
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sample"}
        optima = [self.compute_optimal(c) for c in self.budgets()] if self.trades else []
        told: dict[str, Any] = finite({"schema": SCHEMA, **held, "compute_optimal": optima})
        return told

    def write(self, directory: Path, markdown: str = "") -> None:
        """Write `fit.json`, `fit.h5` (with the bootstrap sample), and `fit.md` if given, each whole or not at all.

        Raises:
            DataError: the directory cannot be written.
        """
        text = json.dumps({**self.to_json(), "provenance": _provenance()}, indent=1) + "\n"
        beside = directory / f".fit.{os.getpid()}"
        try:
            for name, content in (("fit.json", text), ("fit.md", markdown)):
                if content:
                    with open(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
                        file.write(content)
                    beside.rename(directory / name)
            with h5py.File(beside, "w") as store:
                store.attrs["json"] = text
                store["sample"] = self.sample
                store["sample"].attrs["parameters"] = list(self.params)
                store["residuals"] = self.residuals
            beside.chmod(0o600)
            beside.rename(directory / "fit.h5")
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            raise DataError(f"{directory}: the fit cannot be written ({error.strerror or error})") from None

    def _inputs(self, x: Mapping[str, float]) -> dict[str, Floats]:
        return derive(x, laws.get(self.law).inputs)

    def sampled(self) -> Mapping[str, Floats]:
        """Return each parameter's values over the bootstrap's resamples."""
        return dict(zip(self.params, self.sample.T, strict=True))


def _provenance() -> dict[str, Any]:
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "h5py": h5py.__version__}
    return {
        "time_s": time.time(),
        "argv": sys.argv,
        "python": platform.python_version(),
        "versions": versions,
    }
