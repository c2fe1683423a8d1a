"""t(p, n) = a 2 (p - 1) + b 2 (p - 1) / p n: a ring all-reduce of n bytes over p ranks, latency a and 1/bandwidth b."""

from __future__ import annotations

from typing import Any

from analysis.law import Law, Values


class AlphaBeta(Law):
    """The cost model of collectives: 2 (p - 1) messages of n / p bytes each."""

    name = "alpha_beta"
    description = "t = 2 (p - 1) (a + b n / p): a ring all-reduce of n bytes over p ranks"
    inputs = {"p": (2, 64), "n": (1e3, 1e9)}
    outcome = "t"
    factors = ("a", "b")
    shapes = {}
    example = {"a": 5e-6, "b": 1e-10}
    absolute = ("p",)
    delta, min_distinct = 1.0, 1

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return the messages and the bytes of a rank."""
        return 2 * (x["p"] - 1), 2 * (x["p"] - 1) / x["p"] * x["n"]

    def natural(self, c: Values, unit: Values) -> Values:
        """Return seconds a message and seconds a byte, where t is in seconds."""
        return {"a": c["a"] * unit["y"], "b": c["b"] * unit["y"] / unit["n"]}


LAW = AlphaBeta()
