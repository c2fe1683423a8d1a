"""Fits a law to observations: checked starts, a proven minimum, bootstrap intervals, and what the data cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from analysis import laws
from analysis.errors import DataError, NotConvergedError
from analysis.identify import identify, independent, intervals_of
from analysis.law import Law
from analysis.minimise import CONVERGED, Minima, minimise
from analysis.problem import N_STARTS, Problem
from analysis.profile import profile
from analysis.resampling import Resampling, weights_of
from analysis.result import FitResult
from analysis.table import Observations
from analysis.uncertainty import covariance

Floats = NDArray[np.float64]
SAME_LOSS = 1e-12
MOST_SPREAD = 1e6
"""Ratio of the highest loss to the lowest, beyond which a column holds something else."""
SAME_OBJECTIVE = 1e-6
"""Relative difference up to which two starts ended at the same minimum."""
ENOUGH_RESAMPLES = 100
BLOCK = 250
"""Resamples that are fitted at once; always so many, that no bit of theirs depends on who else is at work."""
LEAST_SPARE = 2
"""Points beyond the parameters from which on resamples say anything."""
POINTS = Resampling()


@dataclass(frozen=True, slots=True)
class Resamples:
    """The law's parameters, (resamples, P), for each bootstrap resample that has a minimum, and how many have none."""

    sample: Floats
    undetermined: int
    """Drew points too few or too alike for so many parameters."""
    not_converged: int


Block = Callable[[range], Resamples]
Spread = Callable[[Block, Sequence[range]], Iterable[Resamples]]
"""Calls a function for each block of resamples and returns what came of them, in their order: the builtin `map`, or
the same over many processes."""


def fit(
    law: str,
    observations: Observations,
    *,
    hold: Mapping[str, float] | None = None,
    delta: float | None = None,
    scale: str | None = None,
    tau: float = 0.5,
    starts: int = N_STARTS,
    bootstrap: int = 1000,
    resampling: Resampling = POINTS,
    seed: int = 0,
    spread: Spread = map,
) -> FitResult:
    """Return the law fitted by the sum of Huber_delta(residual); a residual is ln predicted - ln observed.

    A law of bounded outcomes takes differences instead, over the mean outcome; `scale` and `delta` overrule what the
    law asks for. Points above the law have a share `tau` of the pull: below a half, the law runs through the better
    runs, where badly tuned ones lie above. Parameters in `hold` stay at their value. The law's best starting points,
    at most `starts`, are followed to their minimum and the lowest one is taken. Intervals are the 2.5 and 97.5
    percentiles of `bootstrap` resamples of the points (or of what `resampling` draws), each fitted from that
    minimum; resample i is drawn from (seed, i) alone. `spread` may fit them elsewhere.

    Raises:
        DataError: the points are too few or too alike for the law, or their losses are all the same.
        NotConvergedError: the best point found has a slope.
    """
    chosen = laws.get(law)
    delta = chosen.delta if delta is None else delta
    if not delta > 0 or bootstrap < 0:
        raise DataError(f"delta={delta}, bootstrap={bootstrap}: delta is positive, bootstrap at least 0")
    problem = chosen.bind(observations, hold, scale, tau)
    _check_outcomes(observations)
    minima, best = solve(problem, delta, starts)
    theta, objective = minima.theta[best], float(minima.objective[best])
    gradient_norm = float(minima.gradient_norm[best])
    if not gradient_norm <= CONVERGED:
        raise NotConvergedError(
            f"{observations.source}: the {law} fit stopped at a scaled gradient of {gradient_norm:.2g}, "
            f"a minimum has less than {CONVERGED:g}"
        )
    reached = minima.objective <= objective * (1 + SAME_OBJECTIVE) + 1e-15
    spare = len(observations) - len(problem.parameters) + len(problem.held)
    count = bootstrap if spare >= LEAST_SPARE else 0
    block = partial(_block, problem, theta, delta, observations, resampling, seed)
    drawn = _joined(spread(block, blocks(count)), len(problem.parameters))
    residual, slopes = problem.residual(theta[None])
    names = list(problem.parameters)
    natural = dict(zip(names, problem.natural(theta[None])[0].tolist(), strict=True))
    free = [i for i, name in enumerate(names) if name not in problem.held]
    at_bound = [names[i] for i in free if minima.at_bound[best, i]]
    intervals = intervals_of(names, drawn.sample)
    for name in problem.held:
        intervals.pop(name, None)
    unidentified = identify(
        [names[i] for i in free], intervals, slopes[0][:, free], at_bound, _of_either_sign(problem)
    )
    unidentified |= chosen.remarks(natural, problem.x)
    x = _ranges_of(observations, chosen)
    found = FitResult(
        law=law,
        params=natural,
        held=dict(problem.held),
        stderr=_errors(names, drawn.sample, {*unidentified, *problem.held}),
        intervals=intervals,
        covariance=covariance(problem, theta, delta),
        objective=objective,
        n_points=len(observations),
        starts_tried=len(minima.objective),
        starts_reached_best=int(reached.sum()),
        gradient_norm=gradient_norm,
        active_bounds=at_bound,
        unidentified=unidentified,
        warnings=[
            *_warnings(observations, count, drawn),
            *(_no_interval(spare) if count < bootstrap else []),
            *chosen.cautions(natural, problem.x),
        ],
        exclusions=list(observations.exclusions),
        delta=delta,
        scale="linear" if problem.plain and not chosen.exponential else "log",
        tau=tau,
        seed=seed,
        bootstrap=count,
        resampling=str(resampling),
        bootstrap_undetermined=drawn.undetermined,
        bootstrap_failed=drawn.not_converged,
        source=observations.source,
        data_sha256=observations.sha256,
        flops_convention=observations.flops_convention,
        size_convention=observations.size_convention,
        data_convention=observations.data_convention,
        outcome=observations.outcome,
        ranges={name: (float(column.min()), float(column.max())) for name, column in x.items()},
        mean_loss=float(observations.y.mean()),
        residuals=(-residual[0] * (1.0 if problem.scale == "log" else problem.unit["y"])).tolist(),
        sample=drawn.sample,
    )
    decided = _decided_by_exclusion(found, observations, hold, scale)
    return replace(found, warnings=[*found.warnings, *decided])


def solve(problem: Problem, delta: float, starts: int = N_STARTS) -> tuple[Minima, int]:
    """Return where each of the law's starts ended, and which end is lowest."""
    tried = problem.starts(starts)
    minima = minimise(problem, tried, np.ones((len(tried), len(problem.y))), delta)
    return minima, int(np.argmin(minima.objective))


def profile_of(
    found: FitResult, observations: Observations, name: str, hold: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """Return the 95 % profile interval of one parameter of a fit to these observations. Raises as `profile`."""
    problem = laws.get(found.law).bind(observations, hold, found.scale, found.tau)
    minima, best = solve(problem, found.delta)
    return profile(problem, minima.theta[best], found.delta, name)


def resample(problem: Problem, theta: Floats, delta: float, weights: Floats) -> Resamples:
    """Return a fit for each row of weights, (B, n), all starting from the minimum `theta`."""
    bootstrap = len(weights)
    free = [i for i, name in enumerate(problem.parameters) if name not in problem.held]
    determined = independent(problem.residual(theta[None])[1][0][:, free], weights > 0)
    weights = weights[determined]
    minima = minimise(problem, np.repeat(theta[None], len(weights), axis=0), weights, delta)
    natural = problem.natural(minima.theta)
    whole = minima.converged & np.isfinite(natural).all(axis=1)
    return Resamples(natural[whole], bootstrap - len(weights), int((~whole).sum()))


def blocks(count: int) -> list[range]:
    """Return the numbers of so many resamples, block by block."""
    return [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


def _block(
    problem: Problem,
    theta: Floats,
    delta: float,
    observations: Observations,
    resampling: Resampling,
    seed: int,
    numbers: range,
) -> Resamples:
    """Return the fits of the resamples of these numbers; at the top of a module, so that another process can."""
    return resample(problem, theta, delta, weights_of(observations, resampling, numbers, seed))


def _joined(parts: Iterable[Resamples], parameters: int) -> Resamples:
    """Return the resamples of all blocks as one."""
    parts = list(parts)
    return Resamples(
        np.concatenate([np.empty((0, parameters)), *(part.sample for part in parts)]),
        sum(part.undetermined for part in parts),
        sum(part.not_converged for part in parts),
    )


def _check_outcomes(observations: Observations) -> None:
    low, high = observations.y.min(), observations.y.max()
    if high - low <= SAME_LOSS * high:
        raise DataError(
            f"{observations.source}: all losses are {observations.y[0]:.6g}; no law follows from one value"
        )
    if high > MOST_SPREAD * low:
        raise DataError(
            f"{observations.source}: losses from {low:.6g} to {high:.6g}; at most a factor of {MOST_SPREAD:g} is fitted"
        )


def _of_either_sign(problem: Problem) -> set[str]:
    """Return the parameters that may be negative: an interval across zero is then as good as any other."""
    low, _ = problem.bounds()
    return {name for name, least in zip(problem.parameters, low, strict=True) if least < 0}


def _ranges_of(observations: Observations, law: Law) -> dict[str, Floats]:
    """Return the law's inputs, and size and tokens where they are known."""
    x = observations.columns(law.inputs)
    for name in "ND":
        try:
            x |= observations.columns(name)
        except DataError:
            continue
    return x


def _errors(names: list[str], sample: Floats, without: set[str]) -> dict[str, float]:
    """Return the standard error of each parameter that has one: of the others it would say how far resamples ran."""
    if len(sample) < 2:
        return {}
    errors = zip(names, sample.std(axis=0, ddof=1).tolist(), strict=True)
    return {name: error for name, error in errors if name not in without}


def _no_interval(spare: int) -> list[str]:
    return [f"{spare} more points than parameters: no interval is given, at least {LEAST_SPARE} are needed"]


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
    if {"N", "D"} <= set(observations.x):
        correlation = np.corrcoef(np.log(observations.N), np.log(observations.D))[0, 1]
        if abs(correlation) > 0.95:
            told.append(
                f"ln N and ln D are correlated ({correlation:.3f}): their exponents are hard to tell apart"
            )
    return told


def _decided_by_exclusion(
    found: FitResult, observations: Observations, hold: Mapping[str, float] | None, scale: str | None
) -> list[str]:
    """Return a warning when the points that were left out would move a parameter out of its interval."""
    if observations.left_out is None or not found.intervals:
        return []
    everything = replace(observations.joined(observations.left_out), left_out=None)
    asked = {"delta": found.delta, "scale": scale, "tau": found.tau}
    try:
        whole = fit(found.law, everything, hold=hold, bootstrap=0, **asked).params  # type: ignore[arg-type]
    except (DataError, NotConvergedError) as error:
        return [f"with the points left out there is no fit: {error}"]
    moved = [
        f"{name} {found.params[name]:.4g} -> {whole[name]:.4g}"
        for name, (low, high) in found.intervals.items()
        if name not in found.unidentified and not low <= whole[name] <= high
    ]
    return [f"the exclusions decide the answer; with all points: {', '.join(moved)}"] if moved else []
