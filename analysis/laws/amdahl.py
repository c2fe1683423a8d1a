"""t(p) = t1 (f + (1 - f) / p): time on p devices where a fraction f of the work is serial (Amdahl 1967)."""

from __future__ import annotations

from typing import Any

from analysis.law import Law, Values


class Amdahl(Law):
    """Strong scaling: the work is the same on any number of devices."""

    name = "amdahl"
    description = "t = t1 (f + (1 - f) / p): time of the same work on p devices, serial fraction f"
    inputs = {"p": (1, 64)}
    outcome = "t"
    factors = ("t1", "f")
    shapes = {}
    example = {"t1": 100.0, "f": 0.05}
    absolute = ("p",)
    delta, min_distinct = 1.0, 2

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return 1 / p and one: the coordinates are the time of the parallel and of the serial part."""
        return 1 / x["p"], x["p"] ** 0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the time on one device and the serial fraction."""
        whole = c["t1"] + c["f"]
        return {"t1": whole * unit["y"], "f": c["f"] / whole}

    def coordinates(self, p: Values) -> Values:
        """Return the time of the parallel and of the serial part."""
        return {"t1": p["t1"] * (1 - p["f"]), "f": p["t1"] * p["f"]}


LAW = Amdahl()
