"""y = c - m ln x: what most metrics follow over a narrow range, datastores among them (MassiveDS, arXiv 2407.12854)."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.law import Law, Values


class LogLinear(Law):
    """A straight line over ln x, falling for positive m; least squares."""

    name = "log_linear"
    description = "y = c - m ln x: linear in the logarithm of one input"
    inputs = {"x": (1e18, 1e22)}
    outcome = "L"
    factors = signed = ("c", "m")
    shapes = {}
    example = {"c": 9.0, "m": 0.12}
    scale, delta = "linear", 1.0

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return one and -ln x."""
        return np.ones_like(x["x"]), -np.log(x["x"])

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the value at x = 1 and the slope."""
        m = c["m"] * unit["y"]
        return {"c": c["c"] * unit["y"] + m * np.log(unit["x"]), "m": m}


LAW = LogLinear()
