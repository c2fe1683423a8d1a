"""Laws, one file each: a module in this folder with a `LAW` is a law. Listing them imports nothing heavy."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from analysis.errors import DataError
from analysis.table import Observations

Floats = NDArray[np.float64]


class Problem(Protocol):
    """A law bound to data, in coordinates in which it is well scaled. Every array has a leading batch axis."""

    def starts(self) -> Floats:
        """Return starting points, the most promising first, (K, P)."""

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the lowest and highest value of each coordinate, (P,) each."""

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        """Return ln(predicted) - ln(observed), (B, n), and its derivative by the coordinates, (B, n, P)."""

    def curvature(self, theta: Floats, weight: Floats) -> Floats:
        """Return sum_i weight_i times the Hessian of residual i, (B, P, P), for weights (B, n)."""

    def natural(self, theta: Floats) -> Floats:
        """Return the law's own parameters, in the order of its names, (B, P)."""


class Law(Protocol):
    """One scaling law."""

    name: str
    description: str
    parameters: tuple[str, ...]

    def bind(self, observations: Observations) -> Problem:
        """Return the problem of fitting these. Raises DataError when they are too few or too alike."""

    def predict(self, parameters: Mapping[str, Floats], N: Floats, D: Floats) -> Floats:
        """Return the predicted loss."""

    def compute_optimal(self, parameters: Mapping[str, Floats], flops: float) -> dict[str, Floats]:
        """Return the N, D and L of the best run of so many FLOPs."""


def names() -> list[str]:
    """Return the names of all laws, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Law:
    """Return the law called `name`. Raises DataError, with the nearest name, when there is none."""
    if name not in names():
        near = get_close_matches(name, names(), n=1) or names()
        raise DataError(f"no law '{name}'; there is {', '.join(near)}")
    law: Law = import_module(f"analysis.laws.{name}").LAW
    return law
