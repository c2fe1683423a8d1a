"""L(N, P) = E + (A / (N (k ln P + 1)))^alpha: what P parallel streams are worth (ParScale, arXiv 2505.10475)."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.law import Law, Shape, Values, exponent, power


class ParScale(Law):
    """The parallel scaling law, at fixed tokens; N counts without embeddings, the logarithm is natural."""

    name = "parscale"
    description = "L = E + (A / (N (k ln P + 1)))^alpha: loss by parameters and parallel streams"
    inputs = {"N": (5e8, 5e9), "P": (1, 8)}
    factors, constant = ("A", "E"), "E"
    shapes = {"k": Shape(1e-6, 10.0, tuple(np.geomspace(0.05, 2, 10))), "alpha": exponent()}
    example = {"A": 1.13e7, "E": 0.6912, "k": 0.3935, "alpha": 0.1894}
    absolute = ("P",)
    min_distinct = 2

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return the effective parameters N (k ln P + 1) to the power -alpha, and one."""
        return power(x["N"] * (s["k"] * np.log(x["P"]) + 1), s["alpha"]), 1.0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return A in parameters: the factor is its power alpha."""
        A = (c["A"] * unit["y"]) ** (1 / c["alpha"]) * unit["N"]
        return {**c, "A": A, "E": c["E"] * unit["y"]}

    def coordinates(self, p: Values) -> Values:
        """Return the factor A^alpha."""
        return {**p, "A": p["A"] ** p["alpha"]}


LAW = ParScale()
