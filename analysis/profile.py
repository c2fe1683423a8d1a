"""The profile of a fit's objective: how far one parameter can go while all the others make up for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import chdtri

from analysis.errors import DataError, NotConvergedError
from analysis.problem import Problem
from analysis.uncertainty import LEAST_INSIDE, STEP, psi

Floats = NDArray[np.float64]
EXACT = 1e-12
"""Root mean square of residuals that rounding alone may leave: then there is nothing to be unsure about."""
MOST_STEPS = 200
ON_THE_LINE = 1e-3
"""Part of the allowed rise that an end may miss."""
LARGEST = 1e200


def profile(problem: Problem, theta: Floats, delta: float, name: str) -> tuple[float, float]:
    """Return the 95 % interval of one parameter: its least and its greatest value where the objective is still low.

    Low is a rise of the objective, from its minimum `theta`, by chi^2_1 / 2 times E[psi^2] / E[psi'] at most (the
    likelihood ratio where errors are normal). These extremes are the ends of the profile, of whatever function of
    the coordinates a parameter is. An end is infinite where the fit's bounds come first: the data do not bound that
    side.

    Raises:
        DataError: there is no such free parameter, or too few residuals lie within delta.
        NotConvergedError: an end was not found.
    """
    free = [each for each in problem.parameters if each not in problem.held]
    if name not in free:
        raise DataError(f"{problem.law.name}: no profile of '{name}'; there is {', '.join(free)}")
    residual = problem.residual(theta[None])[0][0]
    inside, n = int((np.abs(residual) <= delta).sum()), len(residual)
    if inside < LEAST_INSIDE:
        raise DataError(
            f"{name}: {inside} residuals lie within delta = {delta:g}; a profile needs {LEAST_INSIDE}"
        )
    pull, bend = psi(problem, residual, delta)
    allowed = chdtri(1, 0.05) / 2 * (pull @ pull) / bend.sum() * n / (n - len(free))
    hill = _Hill(problem, theta, delta, allowed, name)
    if pull @ pull <= EXACT**2 * n:
        return hill.value(theta), hill.value(theta)
    return hill.end(-1), hill.end(1)


@dataclass(frozen=True)
class _Hill:
    """The objective around its minimum `theta`, and the line on it that an interval may reach."""

    problem: Problem
    theta: Floats
    delta: float
    allowed: float
    name: str

    def end(self, side: int) -> float:
        """Return the parameter's least (side -1) or greatest value on the line, infinite where bounds come first."""
        at = self.search(side)
        rise, _ = self.rise(at)
        if abs(rise - 1) <= ON_THE_LINE:
            return self.value(at)
        low, high = self.bounds
        if rise < 1 and (np.isclose(at, low) | np.isclose(at, high))[low < high].any():
            return side * float("inf")
        raise NotConvergedError(
            f"{self.problem.law.name}: the profile of {self.name} stopped at {rise:.3g} times the allowed rise"
        )

    def search(self, side: int) -> Floats:
        """Return the farthest place to that side that sequential quadratic programming finds."""
        at, axes, (low, high) = self.theta, self.axes, self.bounds

        def place(z: Floats) -> Floats:
            return np.asarray(np.clip(at + axes @ z, low, high))

        def away(z: Floats) -> tuple[float, Floats]:
            value, slopes = self.measure(place(z))
            return -side * value, -side * slopes @ axes

        constraints: list[dict[str, Any]] = [
            {
                "type": "ineq",
                "fun": lambda z: 1 - self.rise(place(z))[0],
                "jac": lambda z: -self.rise(place(z))[1] @ axes,
            },
            {
                "type": "ineq",
                "fun": lambda z: np.append(at + axes @ z - low, high - at - axes @ z),
                "jac": lambda _: np.concatenate([axes, -axes]),
            },
        ]
        start = np.zeros(axes.shape[1])
        options = {"maxiter": MOST_STEPS, "ftol": 1e-12}
        found = minimize(away, start, jac=True, method="SLSQP", constraints=constraints, options=options)
        return place(found.x)

    @cached_property
    def axes(self) -> Floats:
        """Directions, (P, free); a step of one along any of them raises the objective by about the allowed."""
        at, (low, high) = self.theta, self.bounds
        free = np.flatnonzero(low < high)
        residual, slopes = self.problem.residual(at[None])
        pull, bend = psi(self.problem, residual, self.delta)
        hessian = (
            np.einsum("bn,bni,bnj->ij", bend, slopes, slopes) + self.problem.curvature(at[None], pull)[0]
        )
        values, vectors = np.linalg.eigh(hessian[np.ix_(free, free)])
        least = 2 * self.allowed / np.square(high - low)[free].max()
        axes = np.zeros((len(at), len(free)))
        axes[free] = vectors * np.sqrt(2 * self.allowed / np.maximum(np.abs(values), least))
        return axes

    def rise(self, theta: Floats) -> tuple[float, Floats]:
        """Return how far the objective has risen, in what is allowed, and the slopes of that, (P,)."""
        value, slopes = self.objective(theta)
        return (value - self.best) / self.allowed, slopes / self.allowed

    def objective(self, theta: Floats) -> tuple[float, Floats]:
        """Return the sum of Huber terms and its gradient, (P,)."""
        residual, slopes = (part[0] for part in self.problem.residual(theta[None]))
        size, delta = np.abs(residual), self.delta
        terms = np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))
        pull, _ = psi(self.problem, residual, delta)
        return float((self.problem.side(residual) * terms).sum()), np.asarray(pull @ slopes)

    def measure(self, theta: Floats) -> tuple[float, Floats]:
        """Return asinh(parameter / its value at the minimum) and its slopes, (P,): far out it grows as a logarithm."""
        values = self.problem.natural(theta + STEP * 1j * np.eye(len(theta)))[:, self.k] / self.size
        value = float(np.clip(values[0].real, -LARGEST, LARGEST))
        slopes = np.clip(np.nan_to_num(values.imag / STEP), -LARGEST, LARGEST)
        return float(np.arcsinh(value)), slopes / np.hypot(1, value)

    def value(self, theta: Floats) -> float:
        """Return the parameter."""
        return float(self.problem.natural(theta[None])[0, self.k])

    @cached_property
    def k(self) -> int:
        """Where the parameter stands."""
        return self.problem.parameters.index(self.name)

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """The lowest and highest coordinates."""
        return self.problem.bounds()

    @cached_property
    def best(self) -> float:
        """The objective at the minimum."""
        return self.objective(self.theta)[0]

    @cached_property
    def size(self) -> float:
        """The parameter at the minimum, without its sign; one where it is zero."""
        return abs(self.value(self.theta)) or 1.0
