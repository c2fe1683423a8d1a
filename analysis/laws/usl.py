"""X(p) = g p / (1 + s (p - 1) + k p (p - 1)): contention s, coherence k (Gunther's universal scalability law)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.law import Floats, Law, Values


class Usl(Law):
    """Throughput that peaks at p = sqrt((1 - s) / k); both s and k are at least zero."""

    name = "usl"
    description = "X = g p / (1 + s (p - 1) + k p (p - 1)): throughput on p devices, with a peak"
    inputs = {"p": (1, 4096)}
    outcome = "X"
    factors = ("g", "s", "k")
    shapes = {}
    example = {"g": 1000.0, "s": 0.02, "k": 1e-5}
    absolute = ("p",)
    outer = -1.0
    delta, min_distinct = 1.0, 4

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return what one over X is a sum of: 1/p, (p - 1)/p and p - 1."""
        return 1 / x["p"], (x["p"] - 1) / x["p"], x["p"] - 1

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the throughput of one device, contention and coherence."""
        return {"g": unit["y"] / c["g"], "s": c["s"] / c["g"], "k": c["k"] / c["g"]}

    def coordinates(self, p: Values) -> Values:
        """Return the factors of the sum."""
        return {"g": 1 / p["g"], "s": p["s"] / p["g"], "k": p["k"] / p["g"]}

    def peak(self, parameters: Mapping[str, Floats]) -> Floats:
        """Return the number of devices beyond which throughput falls; infinite where k is zero."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.sqrt(np.maximum(1 - parameters["s"], 0) / parameters["k"]))


LAW = Usl()
