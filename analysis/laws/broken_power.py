"""y = E + A x^-alpha (1 + (x / x_break)^(1/width))^(-bend width): one smooth break (Caballero et al. 2023, eq. 1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.law import Law, Shape, Values, exponent, place, power


class BrokenPower(Law):
    """A power of one input whose exponent changes from alpha to alpha + bend around x_break."""

    name = "broken_power"
    description = "y = E + A x^-alpha, whose exponent changes by `bend` around `x_break`"
    inputs = {"x": (1e16, 1e24)}
    factors, constant = ("A", "E"), "E"
    shapes = {
        "alpha": exponent(points=5),
        "bend": Shape(-2.0, 4.0, (-0.3, 0.1, 0.5)),
        "x_break": place("x", 6),
        "width": Shape(0.02, 5.0, (0.2, 1.0)),
    }
    example = {"A": 20.0, "E": 0.8, "alpha": 0.05, "bend": 0.2, "x_break": 1e20, "width": 0.4}
    delta = 1.0

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return the broken power and one."""
        beyond = np.logaddexp(0.0, (np.log(x["x"]) - s["x_break"]) / s["width"])
        return power(x["x"], s["alpha"]) * np.exp(-s["bend"] * s["width"] * beyond), 1.0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the factor at x = 1 far before the break, and the floor."""
        return {**c, "A": c["A"] * unit["y"] * unit["x"] ** c["alpha"], "E": c["E"] * unit["y"]}


LAW = BrokenPower()
