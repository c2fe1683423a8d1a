"""L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, eq. 2), fitted as in its approach 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.law import Floats, Law, Values, exponent, power


class Chinchilla(Law):
    """The parametric law of compute-optimal training."""

    name = "chinchilla"
    description = "L = E + A N^-alpha + B D^-beta: loss by parameters and tokens"
    inputs = {"N": (1e7, 1e9), "D": (1e9, 1e11)}
    factors, constant = ("A", "B", "E"), "E"
    shapes = {"alpha": exponent(), "beta": exponent()}
    example = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}
    trades = True

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return N^-alpha, D^-beta and one."""
        return power(x["N"], s["alpha"]), power(x["D"], s["beta"]), 1.0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the factors of runs of one parameter and one token."""
        A = c["A"] * unit["y"] * unit["N"] ** c["alpha"]
        B = c["B"] * unit["y"] * unit["D"] ** c["beta"]
        return {**c, "A": A, "B": B, "E": c["E"] * unit["y"]}

    def compute_optimal(self, parameters: Mapping[str, Floats], flops: float) -> dict[str, Floats]:
        """Return N = G (C/6)^(beta/(alpha+beta)), D = (C/6) / N and their loss, for C = 6 N D (eq. 4).

        Not a number where A or B is zero: then there is no trade between size and tokens.
        """
        A, B, alpha, beta = (parameters[name] for name in ("A", "B", "alpha", "beta"))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            G = np.where((A > 0) & (B > 0), (alpha * A / (beta * B)) ** (1 / (alpha + beta)), np.nan)
            N = G * (flops / 6) ** (beta / (alpha + beta))
            D = flops / 6 / N
            return {"N": N, "D": D, "L": self.predict(parameters, {"N": N, "D": D})}


LAW = Chinchilla()
