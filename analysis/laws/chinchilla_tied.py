"""L(N, D) = E + A N^-alpha + B D^-alpha: one exponent, the law of over-training (Gadre et al. 2024, eq. 4).

With D = M N and C = 6 M N^2 this is L = E + (a M^eta + b M^-eta) C^-eta, eta = alpha / 2: runs of any ratio M of tokens
to parameters lie on parallel lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.law import Floats, Values, exponent, power
from analysis.laws.chinchilla import Chinchilla


class ChinchillaTied(Chinchilla):
    """The parametric law with one exponent for size and tokens."""

    name = "chinchilla_tied"
    description = "L = E + A N^-alpha + B D^-alpha: one exponent; the law of over-training"
    shapes = {"alpha": exponent()}
    example = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.3}

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return N^-alpha, D^-alpha and one."""
        return power(x["N"], s["alpha"]), power(x["D"], s["alpha"]), 1.0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the factors of runs of one parameter and one token."""
        found = super().natural({**c, "beta": c["alpha"]}, unit)
        return {name: found[name] for name in self.example}

    def compute_optimal(self, parameters: Mapping[str, Floats], flops: float) -> dict[str, Floats]:
        """Return the optimum of the free law with both exponents equal."""
        return super().compute_optimal({**parameters, "beta": parameters["alpha"]}, flops)


LAW = ChinchillaTied()
