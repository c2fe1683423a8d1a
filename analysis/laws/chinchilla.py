"""L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, eq. 2), fitted as in its approach 3.

The coordinates are (A min(N)^-alpha, B min(D)^-beta, E, alpha, beta), the first three over the mean loss: the factors
are what a term adds to the smallest run. That takes the units out of the problem, and keeps the long valleys of data
that say little straight: E against a term whose exponent is small, and a steep term that only the smallest runs show,
which at any other reference runs off to a factor of zero with an exponent without limit. The factors stay linear, so
a term that vanishes stands at its bound of zero instead of running to minus infinity as its logarithm would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from analysis.errors import DataError
from analysis.table import Observations

Floats = NDArray[np.float64]
MIN_POINTS = 6
MIN_SIZES = 3
GRID = np.linspace(0.05, 1.5, 16)
"""Exponents of the variable-projection start."""
N_STARTS = 16


@dataclass(frozen=True, slots=True)
class _Problem:
    x: Floats
    """ln N less its lowest."""
    y: Floats
    """ln D less its lowest."""
    loss: Floats
    """In units of the mean loss."""
    shift: tuple[float, float]
    unit: float

    def starts(self) -> Floats:
        """For fixed exponents the law is linear in its factors, all >= 0: solve that on a grid and keep the best."""
        found = []
        for alpha in GRID:
            for beta in GRID:
                terms = np.stack(
                    [np.exp(-alpha * self.x), np.exp(-beta * self.y), np.ones_like(self.x)], axis=1
                )
                factors, error = nnls(terms / self.loss[:, None], np.ones_like(self.loss))
                found.append((error, (*factors, alpha, beta)))
        found.sort(key=lambda start: start[0])
        return np.array([theta for _, theta in found[:N_STARTS]])

    def bounds(self) -> tuple[Floats, Floats]:
        """Factors from 0 to 10 times the highest loss, E to the lowest and a tenth; exponents in [0.001, 5]."""
        high = 10 * self.loss.max()
        return np.array([0, 0, 0, 1e-3, 1e-3]), np.array([high, high, 1.1 * self.loss.min(), 5.0, 5.0])

    def _powers(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """Return N^-alpha and D^-beta over those of the smallest and the predicted loss, (B, n) each."""
        A, B, E, alpha, beta = (theta[:, i, None] for i in range(5))
        by_n, by_d = np.exp(-alpha * self.x), np.exp(-beta * self.y)
        return by_n, by_d, A * by_n + B * by_d + E

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        by_n, by_d, predicted = self._powers(theta)
        A, B = theta[:, 0, None], theta[:, 1, None]
        slopes = np.stack(
            [by_n, by_d, np.ones_like(predicted), -A * by_n * self.x, -B * by_d * self.y], axis=-1
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(predicted / self.loss), slopes / predicted[..., None]

    def curvature(self, theta: Floats, weight: Floats) -> Floats:
        """The Hessian of ln P is that of P over P, less slope slope'."""
        by_n, by_d, predicted = self._powers(theta)
        _, slopes = self.residual(theta)
        hessian = -np.einsum("bn,bni,bnj->bij", weight, slopes, slopes, optimize=True)
        for factor, exponent, power, along in ((0, 3, by_n, self.x), (1, 4, by_d, self.y)):
            part = weight * power / predicted
            cross = -(part * along).sum(axis=1)
            hessian[:, factor, exponent] += cross
            hessian[:, exponent, factor] += cross
            hessian[:, exponent, exponent] += theta[:, factor] * (part * along**2).sum(axis=1)
        return np.asarray(hessian)

    def natural(self, theta: Floats) -> Floats:
        A, B, E, alpha, beta = theta.T
        with np.errstate(over="ignore"):
            A, B = A * np.exp(alpha * self.shift[0]), B * np.exp(beta * self.shift[1])
        return np.stack([A * self.unit, B * self.unit, E * self.unit, alpha, beta], axis=1)


class Chinchilla:
    """The parametric law of compute-optimal training."""

    name = "chinchilla"
    description = "L = E + A N^-alpha + B D^-beta: loss by parameters and tokens"
    parameters = ("A", "B", "E", "alpha", "beta")

    def bind(self, observations: Observations) -> _Problem:
        """Return the problem. Raises DataError for fewer than 6 points, or 3 distinct N, or 3 distinct D."""
        sizes, lengths = len(np.unique(observations.N)), len(np.unique(observations.D))
        if len(observations) < MIN_POINTS or sizes < MIN_SIZES or lengths < MIN_SIZES:
            raise DataError(
                f"{observations.source}: {len(observations)} points with {sizes} distinct N and {lengths} distinct D; "
                f"the law of five parameters needs at least {MIN_POINTS} points, {MIN_SIZES} N and {MIN_SIZES} D"
            )
        log_n, log_d = np.log(observations.N), np.log(observations.D)
        shift = float(log_n.min()), float(log_d.min())
        unit = float(observations.L.mean())
        return _Problem(log_n - shift[0], log_d - shift[1], observations.L / unit, shift, unit)

    def predict(self, parameters: Mapping[str, Floats], N: Floats, D: Floats) -> Floats:
        """Return E + A N^-alpha + B D^-beta."""
        p = parameters
        return np.asarray(p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"])

    def compute_optimal(self, parameters: Mapping[str, Floats], flops: float) -> dict[str, Floats]:
        """Return N = G (C/6)^(beta/(alpha+beta)), D = (C/6) / N and their loss, for C = 6 N D (eq. 4).

        Not a number where A or B is zero: then there is no trade between size and tokens.
        """
        A, B, alpha, beta = (parameters[name] for name in ("A", "B", "alpha", "beta"))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            G = np.where((A > 0) & (B > 0), (alpha * A / (beta * B)) ** (1 / (alpha + beta)), np.nan)
            N = G * (flops / 6) ** (beta / (alpha + beta))
            D = flops / 6 / N
            return {"N": N, "D": D, "L": self.predict(parameters, N, D)}


LAW = Chinchilla()
