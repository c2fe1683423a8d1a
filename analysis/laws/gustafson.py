"""X(p) = X1 (p - f (p - 1)): throughput on p devices whose share of work stays the same (Gustafson 1988)."""

from __future__ import annotations

from typing import Any

from analysis.law import Law, Values


class Gustafson(Law):
    """Weak scaling: the work grows with the devices."""

    name = "gustafson"
    description = "X = X1 (p - f (p - 1)): throughput where the work grows with p devices"
    inputs = {"p": (1, 64)}
    outcome = "X"
    factors = ("X1", "f")
    shapes = {}
    example = {"X1": 1000.0, "f": 0.05}
    absolute = ("p",)
    delta, min_distinct = 1.0, 2

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return p and one: the coordinates are what grows with p and what does not."""
        return x["p"], x["p"] ** 0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the throughput on one device and the serial fraction."""
        whole = c["X1"] + c["f"]
        return {"X1": whole * unit["y"], "f": c["f"] / whole}

    def coordinates(self, p: Values) -> Values:
        """Return what grows with p and what does not."""
        return {"X1": p["X1"] * (1 - p["f"]), "f": p["X1"] * p["f"]}


LAW = Gustafson()
