"""Fits a law to observations: checked starts, a proven minimum, bootstrap intervals, and what the data cannot tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis import laws
from analysis.errors import DataError, NotConvergedError
from analysis.laws import Law, Problem
from analysis.minimise import CONVERGED, minimise
from analysis.result import FitResult
from analysis.table import Observations

Floats = NDArray[np.float64]
SAME_LOSS = 1e-12
MOST_SPREAD = 1e6
"""Ratio of the highest loss to the lowest, beyond which a column holds something else."""
SAME_OBJECTIVE = 1e-6
"""Relative difference up to which two starts ended at the same minimum."""
WIDE = 10.0
"""Ratio of the ends of an interval from which on a factor counts as unidentified: not even its order is known."""
ENOUGH_RESAMPLES = 100
DEPENDENT = 1e8
"""Condition number of the residuals' derivatives from which on other values of the parameters fit as well."""


@dataclass(frozen=True, slots=True)
class Resamples:
    """The law's parameters, (resamples, P), for each bootstrap resample that has a minimum, and how many have none."""

    sample: Floats
    undetermined: int
    """Drew points too few or too alike for so many parameters."""
    not_converged: int


def fit(
    law: str, observations: Observations, *, delta: float = 1e-3, bootstrap: int = 1000, seed: int = 0
) -> FitResult:
    """Return the law fitted by the sum of Huber_delta(ln predicted - ln observed).

    All of the law's starting points are followed to their minimum and the lowest one is taken. Intervals are
    the 2.5 and 97.5 percentiles of `bootstrap` resamples of the points, each fitted from that minimum; resample i
    is drawn from (seed, i) alone.

    Raises:
        DataError: the points are too few or too alike for the law, or their losses are all the same.
        NotConvergedError: the best point found has a slope.
    """
    if not delta > 0 or bootstrap < 0:
        raise DataError(f"delta={delta}, bootstrap={bootstrap}: delta is positive, bootstrap at least 0")
    chosen = laws.get(law)
    problem = chosen.bind(observations)
    if np.ptp(observations.L) <= SAME_LOSS * observations.L.max():
        raise DataError(
            f"{observations.source}: all losses are {observations.L[0]:.6g}; no law follows from one value"
        )
    low, high = observations.L.min(), observations.L.max()
    if high > MOST_SPREAD * low:
        raise DataError(
            f"{observations.source}: losses from {low:.6g} to {high:.6g}; at most a factor of {MOST_SPREAD:g} is fitted"
        )
    n = len(observations)
    starts = problem.starts()
    minima = minimise(problem, starts, np.ones((len(starts), n)), delta)
    best = int(np.argmin(minima.objective))
    theta, objective = minima.theta[best], float(minima.objective[best])
    gradient_norm = float(minima.gradient_norm[best])
    if not gradient_norm <= CONVERGED:
        raise NotConvergedError(
            f"{observations.source}: the {law} fit stopped at a scaled gradient of {gradient_norm:.2g}, "
            f"a minimum has less than {CONVERGED:g}"
        )
    reached = minima.objective <= objective * (1 + SAME_OBJECTIVE) + 1e-15
    drawn = resample(problem, theta, n, delta, bootstrap, seed)
    residual, slopes = problem.residual(theta[None])
    natural = dict(zip(chosen.parameters, problem.natural(theta[None])[0].tolist(), strict=True))
    at_bound = [name for name, held in zip(chosen.parameters, minima.at_bound[best], strict=True) if held]
    unidentified = identify(chosen, drawn.sample, slopes[0], at_bound)
    return FitResult(
        law=law,
        params=natural,
        stderr=_errors(chosen, drawn.sample, unidentified),
        intervals=_intervals(chosen, drawn.sample),
        objective=objective,
        n_points=n,
        starts_tried=len(starts),
        starts_reached_best=int(reached.sum()),
        gradient_norm=gradient_norm,
        active_bounds=at_bound,
        unidentified=unidentified,
        warnings=_warnings(observations, bootstrap, drawn),
        exclusions=list(observations.exclusions),
        delta=delta,
        seed=seed,
        bootstrap=bootstrap,
        bootstrap_undetermined=drawn.undetermined,
        bootstrap_failed=drawn.not_converged,
        source=observations.source,
        data_sha256=observations.sha256,
        flops_convention=observations.flops_convention,
        size_convention=observations.size_convention,
        n_range=(float(observations.N.min()), float(observations.N.max())),
        d_range=(float(observations.D.min()), float(observations.D.max())),
        mean_loss=float(observations.L.mean()),
        residuals=(-residual[0]).tolist(),
        sample=drawn.sample,
    )


def resample(problem: Problem, theta: Floats, n: int, delta: float, bootstrap: int, seed: int) -> Resamples:
    """Return `bootstrap` fits, each to n points drawn with replacement, all starting from the minimum `theta`."""
    weights = np.array(
        [np.random.default_rng([seed, i]).multinomial(n, np.full(n, 1 / n)) for i in range(bootstrap)],
        dtype=float,
    ).reshape(bootstrap, n)
    determined = _independent(problem.residual(theta[None])[1][0], weights > 0)
    weights = weights[determined]
    minima = minimise(problem, np.repeat(theta[None], len(weights), axis=0), weights, delta)
    natural = problem.natural(minima.theta)
    whole = minima.converged & np.isfinite(natural).all(axis=1)
    return Resamples(natural[whole], bootstrap - len(weights), int((~whole).sum()))


def identify(law: Law, sample: Floats, slopes: Floats, at_bound: list[str]) -> dict[str, str]:
    """Return the parameters that the data do not determine, each with the reason.

    Undetermined is one that stands at a bound, on which no prediction depends, or whose interval reaches zero or
    spans more than a factor of ten; and all are when the residuals' derivatives are linearly dependent.
    """
    if not _independent(slopes, np.ones((1, len(slopes)), dtype=bool))[0]:
        return dict.fromkeys(law.parameters, "the data are collinear: other values fit as well")
    found = dict.fromkeys(at_bound, "it stands at a bound of the fit: the data ask for less, or for more")
    for name, matters in zip(law.parameters, _mattering(slopes), strict=True):
        if not matters:
            found.setdefault(name, "its term vanishes: any value fits as well")
    for name, (low, high) in _intervals(law, sample).items():
        if name in found:
            continue
        if low <= 0:
            found[name] = f"its interval [{low:.3g}, {high:.3g}] reaches zero"
        elif high / low > WIDE:
            found[name] = f"its interval [{low:.3g}, {high:.3g}] spans more than a factor of {WIDE:g}"
    return found


def _independent(slopes: Floats, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether the drawn rows, (B, n), of the derivatives, (n, P), determine every parameter that matters."""
    matters = slopes[:, _mattering(slopes)]
    scaled = matters / np.linalg.norm(matters, axis=0)
    singular = np.linalg.svd(scaled * drawn[:, :, None], compute_uv=False)
    return np.asarray(singular[:, -1] * DEPENDENT > singular[:, 0])


def _mattering(slopes: Floats) -> NDArray[np.bool_]:
    """Return which parameters move any prediction: the exponent of a term with a factor of zero does not, (P,)."""
    norms = np.linalg.norm(slopes, axis=0)
    return np.asarray(norms * DEPENDENT > norms.max())


def _errors(law: Law, sample: Floats, unidentified: dict[str, str]) -> dict[str, float]:
    """Return the standard error of each parameter that has one: of the others it would say how far resamples ran."""
    if len(sample) < 2:
        return {}
    errors = zip(law.parameters, sample.std(axis=0, ddof=1).tolist(), strict=True)
    return {name: error for name, error in errors if name not in unidentified}


def _intervals(law: Law, sample: Floats) -> dict[str, tuple[float, float]]:
    if len(sample) < 2:
        return {}
    low, high = np.percentile(sample, [2.5, 97.5], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(law.parameters, low, high, strict=True)}


def _warnings(observations: Observations, bootstrap: int, drawn: Resamples) -> list[str]:
    """Return what a reader must know before trusting the figures."""
    told = []
    if drawn.undetermined:
        told.append(
            f"{drawn.undetermined} of {bootstrap} bootstrap resamples drew points too few or too alike to "
            "determine the law and are left out"
        )
    if drawn.not_converged:
        told.append(
            f"{drawn.not_converged} of {bootstrap} bootstrap resamples did not converge and are left out"
        )
    if bootstrap and len(drawn.sample) < ENOUGH_RESAMPLES:
        told.append(f"{len(drawn.sample)} bootstrap resamples are too few for 95 % intervals")
    correlation = np.corrcoef(np.log(observations.N), np.log(observations.D))[0, 1]
    if abs(correlation) > 0.95:
        told.append(
            f"ln N and ln D are correlated ({correlation:.3f}): their exponents are hard to tell apart"
        )
    return told
