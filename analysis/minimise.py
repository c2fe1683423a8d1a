"""Many robust fits at once: Newton steps on the Huber objective, with the exact Hessian, for a batch of weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.problem import Problem

Floats = NDArray[np.float64]
CONVERGED = 1e-7
"""Largest gradient component of the scaled objective at a minimum."""
MAX_STEPS = 3000
"""Narrow curved valleys, where the data say little, take over a thousand; a fit that is done leaves the batch."""
ROUNDING = 1e-14
"""Relative difference of two objectives that rounding may make; the smaller slope is then the better point."""


@dataclass(frozen=True, slots=True)
class Minima:
    """Where each fit of the batch ended. The objective is the sum of Huber terms."""

    theta: Floats
    objective: Floats
    gradient_norm: Floats
    """Largest component of the scaled objective's gradient, without those that point out of the bounds."""
    at_bound: NDArray[np.bool_]
    """Which coordinates stand at a bound and are pushed against it, (B, P)."""

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each fit stands at a point without slope."""
        return self.gradient_norm <= CONVERGED


def minimise(problem: Problem, theta: Floats, weights: Floats, delta: float) -> Minima:
    """Return the minimum of sum_i w_i Huber(residual_i) from each start of `theta`, (B, P), weights (B, n).

    Inside, the objective is divided by delta times the sum of weights: its gradient is then of order one, and
    neither the number of points nor a factor before the sum can stop it early. Steps solve (H + damping I) s = -g
    with H's negative eigenvalues turned up; damping falls while steps succeed and grows when they do not.
    """
    bounds = problem.bounds()
    theta = np.clip(theta, *bounds)
    scale = 1 / (delta * weights.sum(axis=1))
    value, gradient, hessian = _objective(problem, theta, weights, delta, scale)
    damping = np.full(len(theta), 1e-3)
    for _ in range(MAX_STEPS):
        slope = _slope(theta, gradient, bounds)
        active = np.flatnonzero((slope > CONVERGED * 1e-3) & (damping < 1e12))
        if not len(active):
            break
        pushed = _pushed(theta[active], gradient[active], bounds)
        step = _step(gradient[active], hessian[active], pushed, damping[active])
        tried = np.clip(theta[active] + step, *bounds)
        new = _objective(problem, tried, weights[active], delta, scale[active])
        same = new[0] <= value[active] * (1 + ROUNDING)
        better = (new[0] < value[active]) | (same & (_slope(tried, new[1], bounds) < slope[active]))
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4)
        taken = active[better]
        theta[taken] = tried[better]
        value[taken], gradient[taken], hessian[taken] = (part[better] for part in new)
    slope = _slope(theta, gradient, bounds)
    return Minima(theta, value / scale, slope, _pushed(theta, gradient, bounds))


def _pushed(theta: Floats, gradient: Floats, bounds: tuple[Floats, Floats]) -> NDArray[np.bool_]:
    """Return which coordinates are at a bound that the objective falls beyond."""
    lower, upper = bounds
    return ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))


def _slope(theta: Floats, gradient: Floats, bounds: tuple[Floats, Floats]) -> Floats:
    """Return the largest component of the gradient along which a fit may still move, (B,)."""
    return np.asarray(np.abs(np.where(_pushed(theta, gradient, bounds), 0, gradient)).max(axis=1))


def _objective(
    problem: Problem, theta: Floats, weights: Floats, delta: float, scale: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return scaled value (B,), gradient (B, P) and Hessian (B, P, P).

    Where one of them overflows the value is infinite and the gradient not a number: no step ends or starts there.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        residual, slopes = problem.residual(theta)
        weights = weights * problem.side(residual)
        size = np.abs(residual)
        terms = np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))
        pull = weights * np.clip(residual, -delta, delta)
        value = (weights * terms).sum(axis=1) * scale
        gradient = np.einsum("bn,bni->bi", pull, slopes) * scale[:, None]
        inside = weights * (size <= delta)
        hessian = np.einsum("bn,bni,bnj->bij", inside, slopes, slopes, optimize=True)
        hessian = (hessian + problem.curvature(theta, pull)) * scale[:, None, None]
    whole = np.isfinite(value) & np.isfinite(hessian).all(axis=(1, 2))
    return np.where(whole, value, np.inf), np.where(whole[:, None], gradient, np.nan), hessian


def _step(gradient: Floats, hessian: Floats, pushed: NDArray[np.bool_], damping: Floats) -> Floats:
    """Return the damped Newton step in the coordinates that are free to move.

    The others stay to the last bit: off its bound by a rounding error, one counts as free, and the fit creeps.
    """
    free = ~pushed
    values, vectors = np.linalg.eigh(hessian * (free[:, :, None] & free[:, None, :]))
    along = np.einsum("bji,bj->bi", vectors, gradient * free) / (np.abs(values) + damping[:, None])
    return np.asarray(-np.einsum("bij,bj->bi", vectors, along) * free)
