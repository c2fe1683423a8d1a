"""L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, eq. 2), fitted as in its approach 3.

The coordinates are (a, b, e, alpha, beta) with a = ln A - alpha mean(ln N), b = ln B - beta mean(ln D), e = ln E:
ln L = LSE(a - alpha x, b - beta y, e) with x and y the centred logs. Centring takes the units out of the problem
and most of the correlation between a and alpha, so one and the same fit is found in any units.
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
    y: Floats
    log_loss: Floats
    shift: tuple[float, float]

    def starts(self) -> Floats:
        """For fixed exponents the law is linear in (A, B, E) >= 0: solve that on a grid and keep the best."""
        loss = np.exp(self.log_loss)
        found = []
        for alpha in GRID:
            for beta in GRID:
                terms = np.stack([np.exp(-alpha * self.x), np.exp(-beta * self.y), np.ones_like(self.x)], axis=1)
                factors, error = nnls(terms / loss[:, None], np.ones_like(loss))
                # A factor of zero has no logarithm; a small one can still grow.
                a, b, e = np.log(np.maximum(factors, 1e-3 * loss.min()))
                found.append((error, (a, b, e, alpha, beta)))
        found.sort(key=lambda start: start[0])
        return np.array([theta for _, theta in found[:N_STARTS]])

    def _shares(self, theta: Floats) -> tuple[Floats, Floats]:
        """Return the predicted log loss, (B, n), and the share of each of the three terms in it, (B, n, 3)."""
        a, b, e, alpha, beta = (theta[:, i, None] for i in range(5))
        terms = np.stack(np.broadcast_arrays(a - alpha * self.x, b - beta * self.y, e), axis=-1)
        top = terms.max(axis=-1, keepdims=True)
        shares = np.exp(terms - top)
        total = shares.sum(axis=-1, keepdims=True)
        return (top + np.log(total))[..., 0], shares / total

    def _slopes(self, shares: Floats) -> Floats:
        share_a, share_b, share_e = np.moveaxis(shares, -1, 0)
        return np.stack([share_a, share_b, share_e, -share_a * self.x, -share_b * self.y], axis=-1)

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        log_predicted, shares = self._shares(theta)
        return log_predicted - self.log_loss, self._slopes(shares)

    def curvature(self, theta: Floats, weight: Floats) -> Floats:
        """The Hessian of a log-sum-exp of linear terms phi_k is sum_k share_k phi_k phi_k' - slope slope'."""
        _, shares = self._shares(theta)
        slopes = self._slopes(shares)
        hessian = -np.einsum("bn,bni,bnj->bij", weight, slopes, slopes, optimize=True)
        for term, (own, exponent, along) in enumerate(((0, 3, self.x), (1, 4, self.y))):
            part = weight * shares[..., term]
            hessian[:, own, own] += part.sum(axis=1)
            cross = -(part * along).sum(axis=1)
            hessian[:, own, exponent] += cross
            hessian[:, exponent, own] += cross
            hessian[:, exponent, exponent] += (part * along**2).sum(axis=1)
        hessian[:, 2, 2] += (weight * shares[..., 2]).sum(axis=1)
        return np.asarray(hessian)

    def natural(self, theta: Floats) -> Floats:
        a, b, e, alpha, beta = theta.T
        with np.errstate(over="ignore"):
            A, B = np.exp(a + alpha * self.shift[0]), np.exp(b + beta * self.shift[1])
        return np.stack([A, B, np.exp(e), alpha, beta], axis=1)


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
        shift = float(log_n.mean()), float(log_d.mean())
        return _Problem(log_n - shift[0], log_d - shift[1], np.log(observations.L), shift)

    def predict(self, parameters: Mapping[str, Floats], N: Floats, D: Floats) -> Floats:
        """Return E + A N^-alpha + B D^-beta."""
        p = parameters
        return np.asarray(p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"])

    def compute_optimal(self, parameters: Mapping[str, Floats], flops: float) -> dict[str, Floats]:
        """Return N = G (C/6)^(beta/(alpha+beta)), D = (C/6) / N and their loss, for C = 6 N D (eq. 4)."""
        A, B, alpha, beta = (parameters[name] for name in ("A", "B", "alpha", "beta"))
        G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        N = G * (flops / 6) ** (beta / (alpha + beta))
        D = flops / 6 / N
        return {"N": N, "D": D, "L": self.predict(parameters, N, D)}


LAW = Chinchilla()
