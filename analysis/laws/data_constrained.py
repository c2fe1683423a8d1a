"""L = E + A N^-alpha + B D'^-beta, D' = U (1 + R (1 - exp(-(D/U - 1) / R))): tokens seen again count less and less.

Muennighoff et al. 2023 (arXiv 2305.16264), eq. 5, with its term for the parameters left as it is: U are unique tokens,
R how many repetitions it takes until another is worth 1/e of a fresh one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.law import Floats, Shape, Values, exponent, power
from analysis.laws.chinchilla import Chinchilla


class DataConstrained(Chinchilla):
    """The parametric law with repeated tokens."""

    name = "data_constrained"
    description = "L = E + A N^-alpha + B D'^-beta: D' counts repetitions of U unique tokens for less"
    inputs = {"N": (1e7, 1e9), "D": (1e9, 1e11), "U": (1e8, 1e9)}
    shapes = {
        "alpha": exponent(points=6),
        "beta": exponent(points=6),
        "R": Shape(0.1, 1000.0, tuple(np.geomspace(1, 60, 6))),
    }
    example = {"A": 521.0, "B": 1488.0, "E": 1.87, "alpha": 0.353, "beta": 0.353, "R": 15.4}
    same_unit = {"U": "D"}
    trades = False

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return N^-alpha, D'^-beta and one; D and U are in one unit."""
        unique = np.minimum(x["U"], x["D"])
        again = x["D"] / unique - 1
        worth = unique * (1 - s["R"] * np.expm1(-again / s["R"]))
        return power(x["N"], s["alpha"]), power(worth, s["beta"]), 1.0

    def compute_optimal(self, parameters: Mapping[str, Floats], flops: float) -> dict[str, Floats]:
        """Raise DataError: the optimum depends on how many unique tokens there are."""
        return super(Chinchilla, self).compute_optimal(parameters, flops)


LAW = DataConstrained()
