"""Which law: by AICc on all points, and by how well the smaller runs foretell the larger ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import laws
from analysis.errors import AnalysisError, DataError
from analysis.fitting import fit
from analysis.result import FitResult
from analysis.table import Observations

UNDECIDED = 2.0
"""Difference in AICc up to which the data prefer neither law (Burnham and Anderson 2002, 2.6)."""
LEAST_SQUARES = 1.0
"""A delta that no logarithm of a sensible prediction reaches: all laws are then compared by one likelihood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One law. Lower is better; not a number, with the reason in `problem`, where it could not be fitted."""

    law: str
    parameters: int
    aicc: float
    delta_aicc: float
    """Over the best law's."""
    rms_error: float
    """Root mean square of ln predicted / observed over all points."""
    held_out_error: float
    """The same over the points that the law was to foretell."""
    held_out_inside: float
    """Share of them inside the 95 % prediction interval; not a number without a bootstrap."""
    problem: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What each law is fitted to once more, and what it then has to foretell."""

    seen: Observations
    unseen: Observations


def compare(
    observations: Observations,
    candidates: Sequence[str],
    trial: Trial | None = None,
    hold: Mapping[str, float] | None = None,
    bootstrap: int = 0,
) -> list[Comparison]:
    """Return the laws, best AICc first. All are fitted by least squares of logarithms, so that one likelihood judges.

    `hold` is given to every law that has the parameter. `bootstrap` resamples make the intervals of what is foretold.

    Raises:
        DataError: fewer than two laws are named.
    """
    if len(set(candidates)) < 2:
        raise DataError(f"compare: {', '.join(candidates) or 'no law'}; name at least two laws")
    found = [_one(observations, law, trial, hold or {}, bootstrap) for law in dict.fromkeys(candidates)]
    best = min((one["aicc"] for one in found if np.isfinite(one["aicc"])), default=float("nan"))
    rows = [Comparison(delta_aicc=one["aicc"] - best, **one) for one in found]
    return sorted(rows, key=lambda row: (not np.isfinite(row.aicc), row.aicc))


def largest(observations: Observations, share: float) -> Trial:
    """Return the points with those of largest compute, or of the largest first input, held out: `share` of all.

    Raises:
        DataError: that would be none, or all.
    """
    if not 0 < share < 1:
        raise DataError(f"hold-out share {share:g}: between 0 and 1, such as 0.25")
    name = "C" if {"N", "D"} <= set(observations.x) else next(iter(observations.x))
    size = observations.columns((name,))[name]
    held_out = size > np.quantile(size, 1 - share)
    if not held_out.any():
        raise DataError(f"{observations.source}: no point is larger than the others, none can be held out")
    seen, unseen = (observations.take(np.flatnonzero(rows)) for rows in (~held_out, held_out))
    return Trial(seen, unseen)


def verdict(rows: Sequence[Comparison]) -> str:
    """Return one sentence: which law the data prefer, or that they do not say."""
    whole = [row for row in rows if np.isfinite(row.aicc)]
    if len(whole) < 2:
        return "fewer than two laws could be fitted: nothing to compare"
    first, second = whole[:2]
    gap = second.aicc - first.aicc
    if gap < UNDECIDED:
        return f"undecided between {first.law} and {second.law}: their AICc differ by {gap:.2g}"
    return f"{first.law} is preferred to {second.law} by {gap:.3g} in AICc"


def aicc(found: FitResult) -> float:
    """Return Akaike's criterion with the small-sample term, for normal errors of unknown size on the fit's scale."""
    n, k = found.n_points, len(found.params) - len(found.held) + 1
    if n <= k + 1:
        return float("inf")
    squares = max(float(np.square(found.residuals).sum()), n * np.finfo(float).eps ** 2)
    return float(n * np.log(squares / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _one(
    observations: Observations, law: str, trial: Trial | None, hold: Mapping[str, float], bootstrap: int
) -> dict[str, Any]:
    """Return the fields of a comparison but `delta_aicc`."""
    nan = float("nan")
    row: dict[str, Any] = {"law": law, "parameters": 0, "problem": ""}
    row |= {"aicc": nan, "rms_error": nan, "held_out_error": nan, "held_out_inside": nan}
    try:
        whole = _fitted(observations, law, hold)
        row |= {"parameters": len(whole.params) - len(whole.held), "aicc": aicc(whole)}
        row["rms_error"] = float(np.sqrt(np.mean(np.square(whole.residuals))))
        if trial is not None:
            row |= _foretold(_fitted(trial.seen, law, hold, bootstrap), trial.unseen)
    except AnalysisError as error:
        row["problem"] = str(error)
    return row


def _fitted(observations: Observations, law: str, hold: Mapping[str, float], bootstrap: int = 0) -> FitResult:
    own = laws.get(law).own(hold)
    return fit(law, observations, hold=own, scale="log", delta=LEAST_SQUARES, bootstrap=bootstrap)


def _foretold(found: FitResult, unseen: Observations) -> dict[str, float]:
    """Return the error on points that the fit has not seen, and how many lie inside its intervals."""
    gaps, inside = [], []
    for i, outcome in enumerate(unseen.y):
        x = {name: float(column[i]) for name, column in unseen.x.items()}
        gaps.append(np.log(found.predict(**x) / outcome))
        if interval := found.interval(**x):
            inside.append(interval[0] <= outcome <= interval[1])
    share = float(np.mean(inside)) if inside else float("nan")
    return {"held_out_error": float(np.sqrt(np.mean(np.square(gaps)))), "held_out_inside": share}
