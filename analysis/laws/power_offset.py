"""y = E + A x^-alpha: a power law above a floor."""

from __future__ import annotations

from typing import Any

from analysis.law import Law, Values, exponent, power


class PowerOffset(Law):
    """A power of one input above what no amount of it removes."""

    name = "power_offset"
    description = "y = E + A x^-alpha: a power of one input above a floor"
    inputs = {"x": (1e18, 1e22)}
    factors, constant = ("A", "E"), "E"
    shapes = {"alpha": exponent()}
    example = {"A": 2000.0, "E": 1.7, "alpha": 0.15}

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return x^-alpha and one."""
        return power(x["x"], s["alpha"]), 1.0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the factor at x = 1, and the floor."""
        A = c["A"] * unit["y"] * unit["x"] ** c["alpha"]
        return {"A": A, "E": c["E"] * unit["y"], "alpha": c["alpha"]}


LAW = PowerOffset()
