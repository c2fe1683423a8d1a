"""lr = c N^a D^b: the best peak learning rate by size and tokens (Step Law, arXiv 2503.04715)."""

from __future__ import annotations

from typing import Any

from analysis.law import Law, Values, exponent, power


class LearningRate(Law):
    """A product of powers; `analysis.step_law` has the published coefficients and the batch's law."""

    name = "learning_rate"
    description = "lr = c N^a D^b: the best peak learning rate by parameters and tokens"
    inputs = {"N": (6e7, 1e9), "D": (2e9, 1e11)}
    outcome = "lr"
    factors = ("c",)
    shapes = {"a": exponent(-5), "b": exponent(-5)}
    example = {"c": 1.79, "a": -0.713, "b": 0.307}
    delta, min_distinct = 1.0, 2

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return N^a D^b."""
        return (power(x["N"], -s["a"]) * power(x["D"], -s["b"]),)

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the factor at one parameter and one token."""
        return {**c, "c": c["c"] * unit["y"] * unit["N"] ** -c["a"] * unit["D"] ** -c["b"]}


LAW = LearningRate()
