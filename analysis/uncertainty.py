"""How well the parameters are known by derivatives alone: the estimator's covariance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.problem import Problem

Floats = NDArray[np.float64]
STEP = 1e-30
LEAST_INSIDE = 5
"""Points within delta that the curvature of a Huber objective needs before it says anything."""


def covariance(problem: Problem, theta: Floats, delta: float) -> dict[str, dict[str, float]]:
    """Return the covariance of the parameters that are free and inside their bounds; empty where it is undefined.

    For the estimator that minimises sum Huber(r) it is E[psi^2] / E[psi']^2 (J'J)^-1 n / (n - P), the Gauss-Newton
    covariance where all residuals are within delta (Huber 1981, 7.6), carried to the law's own parameters.
    """
    residual, slopes = (part[0] for part in problem.residual(theta[None]))
    low, high = problem.bounds()
    free = np.flatnonzero((theta > low) & (theta < high))
    spread = _spread(problem, residual, delta, len(free))
    if spread is None or not len(free):
        return {}
    moved = np.repeat(theta[None].astype(complex), len(free), axis=0)
    moved[np.arange(len(free)), free] += STEP * 1j
    to_natural = problem.natural(moved).imag / STEP
    try:
        inner = np.linalg.inv(slopes[:, free].T @ slopes[:, free]) * spread
    except np.linalg.LinAlgError:
        return {}
    found = to_natural.T @ inner @ to_natural
    names = problem.parameters
    kept = [i for i in range(len(names)) if found[i, i] > 0]
    return {names[i]: {names[j]: float(found[i, j]) for j in kept} for i in kept}


def psi(problem: Problem, residual: Floats, delta: float) -> tuple[Floats, Floats]:
    """Return the derivative of each Huber term by its residual, and the second one."""
    side = problem.side(residual)
    inside = np.where(np.abs(residual) <= delta, side, 0.0)
    return np.asarray(side * np.clip(residual, -delta, delta)), inside


def _spread(problem: Problem, residual: Floats, delta: float, free: int) -> float | None:
    """Return E[psi^2] / E[psi']^2 n / (n - P), None where too few residuals lie within delta or none is to spare."""
    n, inside = len(residual), int((np.abs(residual) <= delta).sum())
    if inside < LEAST_INSIDE or n <= free:
        return None
    pull, slope = psi(problem, residual, delta)
    return float((pull @ pull / n) / (slope.sum() / n) ** 2 * n / (n - free))
