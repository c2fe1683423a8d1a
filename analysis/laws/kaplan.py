"""L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D (Kaplan et al. 2020, eq. 1.5): no irreducible loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.law import Floats, Law, Values, exponent, power


class Kaplan(Law):
    """The law of the first study of neural scaling; N counts without embeddings there."""

    name = "kaplan"
    description = "L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D: no irreducible loss"
    inputs = {"N": (1e6, 1e9), "D": (1e8, 1e11)}
    factors = ("N_c", "D_c")
    shapes = {"alpha_N": exponent(0.05, 5), "alpha_D": exponent(0.01, 2)}
    example = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}
    outer = "alpha_D"
    trades = True

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return N^-ratio and 1 / D; the coordinate alpha_N is the ratio of the exponents."""
        return power(x["N"], s["alpha_N"]), 1 / x["D"]

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the scales N_c and D_c, and alpha_N from the ratio."""
        ratio, total = c["alpha_N"], unit["y"] ** (1 / c["alpha_D"])
        N_c = (c["N_c"] * total) ** (1 / ratio) * unit["N"]
        return {
            "N_c": N_c,
            "D_c": c["D_c"] * total * unit["D"],
            "alpha_N": ratio * c["alpha_D"],
            "alpha_D": c["alpha_D"],
        }

    def coordinates(self, p: Values) -> Values:
        """Return factors and the ratio of the exponents."""
        ratio = p["alpha_N"] / p["alpha_D"]
        return {**p, "alpha_N": ratio, "N_c": p["N_c"] ** ratio}

    def compute_optimal(self, parameters: Mapping[str, Floats], flops: float) -> dict[str, Floats]:
        """Return the N, D and L of the least sum in the brackets, for C = 6 N D; no number without both terms."""
        c = self.coordinates(dict(parameters))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            N = (c["alpha_N"] * c["N_c"] * flops / (6 * c["D_c"])) ** (1 / (c["alpha_N"] + 1))
            N = np.where((c["N_c"] > 0) & (c["D_c"] > 0), N, np.nan)
            D = flops / 6 / N
            return {"N": N, "D": D, "L": self.predict(parameters, {"N": N, "D": D})}


LAW = Kaplan()
