"""y = E + F S^-gamma: loss by the tokens S of a datastore that a model retrieves from (MassiveDS, arXiv 2407.12854).

The paper shows trends over ln S and no coefficients; whether there is a floor E is the question. `isoflop compare
--laws datastore,log_linear` asks the data.
"""

from __future__ import annotations

from typing import Any

from analysis.law import Law, Values, exponent, power


class Datastore(Law):
    """A power of the datastore's size above what no amount of retrieval removes, for one model and retriever."""

    name = "datastore"
    description = "y = E + F S^-gamma: loss by the tokens S of a datastore that is retrieved from"
    inputs = {"S": (1e8, 1.4e12)}
    factors, constant = ("F", "E"), "E"
    shapes = {"gamma": exponent()}
    example = {"F": 12.0, "E": 2.1, "gamma": 0.15}

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return S^-gamma and one."""
        return power(x["S"], s["gamma"]), 1.0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the factor of a datastore of one token, and the floor."""
        return {
            **c,
            "F": c["F"] * unit["y"] * unit["S"] ** c["gamma"],
            "E": c["E"] * unit["y"],
        }


LAW = Datastore()
