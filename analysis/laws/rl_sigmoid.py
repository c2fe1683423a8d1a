"""R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B): reward by compute, saturating (ScaleRL, arXiv 2510.13786)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.law import Floats, Law, Shape, Values, place

BENT = 1.5
"""Largest compute over C_mid from which on the curve shows where it ends: at 0.8 the asymptote is a guess."""


class RlSigmoid(Law):
    """A bounded reward that saturates; R0, the reward of the start policy, is measured and held."""

    name = "rl_sigmoid"
    description = "R = R0 + (A - R0) / (1 + (C_mid / C)^B): reward by compute, up to an asymptote A"
    inputs = {"C": (100, 16000)}
    outcome = "R"
    factors, constant = ("A", "R0"), "R0"
    shapes = {"B": Shape(0.05, 20.0, tuple(np.geomspace(0.3, 6, 10))), "C_mid": place("C")}
    example = {"A": 0.61, "R0": 0.22, "B": 1.9, "C_mid": 2500.0}
    measured = ("R0",)
    ceiling = 1.0
    scale, delta = "linear", 1.0

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return the share of the gain that is reached, and one; the coordinate A is the gain A - R0."""
        return np.exp(-np.logaddexp(0.0, s["B"] * (s["C_mid"] - np.log(x["C"])))), 1.0

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the asymptote."""
        R0 = c["R0"] * unit["y"]
        return {**c, "R0": R0, "A": c["A"] * unit["y"] + R0}

    def coordinates(self, p: Values) -> Values:
        """Return the gain."""
        return {**p, "A": p["A"] - p["R0"]}

    def remarks(self, parameters: Mapping[str, float], x: Mapping[str, Floats]) -> dict[str, str]:
        """Say so when the curve has not bent yet."""
        reached = {name: float(x["C"].max() / parameters[name]) for name in parameters if "C_mid" in name}
        if min(reached.values()) >= BENT:
            return {}
        least = min(reached.values())
        return {
            "A": f"asymptote not identified: the largest compute is {least:.2g} C_mid, {BENT:g} are needed"
        }


LAW = RlSigmoid()
