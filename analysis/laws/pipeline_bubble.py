"""t(m, s) = c (m + s - 1) + o: m microbatches through s stages; the bubble is (s - 1) / (m + s - 1) of the slots."""

from __future__ import annotations

from typing import Any

from analysis.law import Law, Values


class PipelineBubble(Law):
    """One-forward-one-backward or GPipe; with v chunks a device, s - 1 is to be counted as (s - 1) / v."""

    name = "pipeline_bubble"
    description = "t = c (m + s - 1) + o: a pipeline step of m microbatches through s stages"
    inputs = {"m": (4, 64), "s": (1, 8)}
    outcome = "t"
    factors = ("c", "o")
    shapes = {}
    example = {"c": 0.2, "o": 0.05}
    absolute = ("m", "s")
    delta, min_distinct = 1.0, 1

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return the slots of a step, and one for what it costs besides."""
        return x["m"] + x["s"] - 1, x["m"] ** 0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the time of a slot and of the rest."""
        return {name: value * unit["y"] for name, value in c.items()}


LAW = PipelineBubble()
