"""y = h0 + h1 ln C: hit rate (rising) or normalised entropy (falling) of a generative recommender (arXiv 2402.17152).

C is the training compute of the dense part; embedding tables are memory, not FLOPs. Over the three decades of the
paper a power law says the same: `isoflop compare --laws recommender,power`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.errors import DataError
from analysis.law import Floats, Law, Values


class Recommender(Law):
    """A straight line over ln C, which a bounded metric cannot follow for ever; least squares."""

    name = "recommender"
    description = "y = h0 + h1 ln C: hit rate or normalised entropy of a recommender by compute"
    inputs = {"C": (1e15, 1e20)}
    outcome = "y"
    factors = signed = ("h0", "h1")
    shapes = {}
    example = {"h0": -0.5, "h1": 0.02}
    scale, delta = "linear", 1.0

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return one and ln C."""
        return np.ones_like(x["C"]), np.log(x["C"])

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the value at C = 1 and the slope."""
        h1 = c["h1"] * unit["y"]
        return {"h0": c["h0"] * unit["y"] - h1 * np.log(unit["C"]), "h1": h1}

    def cautions(self, parameters: Mapping[str, float], x: Mapping[str, Floats]) -> list[str]:
        """Say where the line leaves what a share can be."""
        bound = 1 if parameters["h1"] > 0 else 0
        with np.errstate(divide="ignore", over="ignore"):
            C = np.exp(np.divide(bound - parameters["h0"], parameters["h1"]))
        return (
            [f"the line reaches {bound}, which a share cannot pass, at C = {C:.3g}"] if np.isfinite(C) else []
        )


def normalised_entropy(happened: Floats, predicted: Floats) -> float:
    """Return the cross-entropy of predicted probabilities over that of the base rate: 1 says nothing, 0 all.

    Raises:
        DataError: what happened is not 0 or 1, or always the same; or a probability is not between 0 and 1.
    """
    y, q = np.asarray(happened, dtype=float), np.asarray(predicted, dtype=float)
    rate = y.mean()
    if not np.isin(y, (0, 1)).all() or not 0 < rate < 1:
        raise DataError("normalised entropy: both 0 and 1 have to happen, and nothing else")
    if not ((q > 0) & (q < 1)).all():
        raise DataError("normalised entropy: a predicted probability is not between 0 and 1")
    model = y * np.log(q) + (1 - y) * np.log1p(-q)
    return float(-model.mean() / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


LAW = Recommender()
