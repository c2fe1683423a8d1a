"""y = A x^-alpha: a straight line in logarithms, falling or rising."""

from __future__ import annotations

from typing import Any

from analysis.law import Law, Values, exponent
from analysis.law import power as raised


class Power(Law):
    """A power of one input; x is the compute where the table names no other."""

    name = "power"
    description = "y = A x^-alpha: a power of one input, such as compute"
    inputs = {"x": (1e18, 1e22)}
    factors = ("A",)
    shapes = {"alpha": exponent(-5)}
    example = {"A": 25.0, "alpha": 0.05}

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return x^-alpha."""
        return (raised(x["x"], s["alpha"]),)

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the factor at x = 1."""
        return {"A": c["A"] * unit["y"] * unit["x"] ** c["alpha"], "alpha": c["alpha"]}


LAW = Power()
