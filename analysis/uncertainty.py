"""How well a parameter is known, without resampling: the estimator's covariance, and the profile of its objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import chi2

from analysis.errors import DataError
from analysis.minimise import minimise
from analysis.problem import Problem

Floats = NDArray[np.float64]
STEP = 1e-30
LEAST_INSIDE = 5
"""Points within delta that the curvature of a Huber objective needs before it says anything."""
SEARCH = 40
"""Doublings of a profile's first step before its interval counts as open."""


def covariance(problem: Problem, theta: Floats, delta: float) -> dict[str, dict[str, float]]:
    """Return the covariance of the parameters that are free and inside their bounds; empty where it is undefined.

    For the estimator that minimises sum Huber(r) it is E[psi^2] / E[psi']^2 (J'J)^-1 n / (n - P), the Gauss-Newton
    covariance where all residuals are within delta (Huber 1981, 7.6), carried to the law's own parameters.
    """
    residual, slopes = (part[0] for part in problem.residual(theta[None]))
    low, high = problem.bounds()
    free = np.flatnonzero((theta > low) & (theta < high))
    spread = _spread(residual, delta, len(free))
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


def profile(problem: Problem, theta: Floats, delta: float, name: str) -> tuple[float, float]:
    """Return the 95 % interval of one shape or constant from the objective minimised over all the others.

    The objective may rise by chi^2_1 / 2 times E[psi^2] / E[psi'] (the likelihood ratio where errors are normal).
    An end is infinite where the objective never rises so far: the data do not bound the parameter on that side.

    Raises:
        DataError: the parameter cannot be held at a value, or too few residuals lie within delta.
    """
    names = problem.parameters
    at = names.index(name) if name in names else -1
    problem.law._check_hold({name: 1.0, **problem.held}, names)
    residual, _ = problem.residual(theta[None])
    inside = np.abs(residual[0]) <= delta
    if inside.sum() < LEAST_INSIDE:
        raise DataError(
            f"{name}: {inside.sum()} residuals lie within delta = {delta:g}; a profile needs {LEAST_INSIDE}"
        )
    pull = np.clip(residual[0], -delta, delta)
    n = len(pull)
    allowed = chi2.ppf(0.95, 1) / 2 * (pull @ pull) / inside.sum() * n / (n - len(names) + len(problem.held))
    ones = np.ones((1, n))
    best = minimise(problem, theta[None], ones, delta).objective[0]
    ends = []
    for side in (-1, 1):
        low, high = (bound[at] for bound in problem.bounds())

        def excess(step: float, side: int = side, low: float = low, high: float = high) -> float:
            held = _held_at(problem, at, float(np.clip(theta[at] + side * step, low, high)))
            found = minimise(
                held, np.where(np.arange(len(theta)) == at, theta[at] + side * step, theta)[None], ones, delta
            )
            return float(found.objective[0] - best - allowed)

        ends.append(theta[at] + side * _crossing(excess, high - low, abs(theta[at])))
    moved = np.repeat(theta[None], 2, axis=0)
    moved[:, at] = np.where(np.isfinite(ends), ends, theta[at])
    values = problem.natural(moved)[:, at]
    return tuple(np.where(np.isfinite(ends), values, ends).tolist())


def _spread(residual: Floats, delta: float, free: int) -> float | None:
    """Return E[psi^2] / E[psi']^2 n / (n - P), None where too few residuals lie within delta or none is to spare."""
    n, inside = len(residual), int((np.abs(residual) <= delta).sum())
    if inside < LEAST_INSIDE or n <= free:
        return None
    pull = np.clip(residual, -delta, delta)
    return float((pull @ pull / n) / (inside / n) ** 2 * n / (n - free))


def _crossing(excess, width: float, size: float) -> float:  # type: ignore[no-untyped-def]
    """Return the step at which the excess becomes positive, infinite where it never does."""
    step, before = 1e-3 * max(size, 1e-3), 0.0
    for _ in range(SEARCH):
        if excess(step) > 0:
            return float(brentq(excess, before, step, rtol=1e-6))
        if step >= width:
            break
        before, step = step, min(2 * step, width)
    return float("inf")


def _held_at(problem: Problem, at: int, coordinate: float) -> Problem:
    """Return the problem with one coordinate pinned."""
    return replace(problem, pinned={**problem.pinned, at: coordinate})
