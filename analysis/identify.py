"""Which parameters the data determine, and which they do not, each with the reason."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WIDE = 10.0
"""Ratio of the ends of an interval from which on a factor counts as unidentified: not even its order is known."""
DEPENDENT = 1e8
"""Condition number of the residuals' derivatives from which on other values of the parameters fit as well."""
INTERVAL = (2.5, 97.5)


def identify(
    names: list[str],
    intervals: dict[str, tuple[float, float]],
    slopes: Floats,
    at_bound: list[str],
    either_sign: set[str],
) -> dict[str, str]:
    """Return the parameters that the data do not determine, each with the reason.

    Undetermined is one that stands at a bound, on which no prediction depends, or whose interval reaches zero or
    spans more than a factor of ten; and all are when the residuals' derivatives, (n, P), are linearly dependent.
    Of a parameter of either sign the interval says enough by itself.
    """
    if not independent(slopes, np.ones((1, len(slopes)), dtype=bool))[0]:
        return dict.fromkeys(names, "the data are collinear: other values fit as well")
    found = dict.fromkeys(at_bound, "it stands at a bound of the fit: the data ask for less, or for more")
    for name, matters in zip(names, _mattering(slopes), strict=True):
        if not matters:
            found.setdefault(name, "its term vanishes: any value fits as well")
    for name, (low, high) in intervals.items():
        if name in found or name in either_sign or name not in names:
            continue
        if low <= 0:
            found[name] = f"its interval [{low:.3g}, {high:.3g}] reaches zero"
        elif high / low > WIDE:
            found[name] = f"its interval [{low:.3g}, {high:.3g}] spans more than a factor of {WIDE:g}"
    return found


def independent(slopes: Floats, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether the drawn rows, (B, n), of the derivatives, (n, P), determine every parameter that matters."""
    matters = slopes[:, _mattering(slopes)]
    scaled = matters / np.linalg.norm(matters, axis=0)
    singular = np.linalg.svd(scaled * drawn[:, :, None], compute_uv=False)
    return np.asarray(singular[:, -1] * DEPENDENT > singular[:, 0])


def intervals_of(names: list[str], sample: Floats) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each column of a bootstrap sample, (resamples, P)."""
    if len(sample) < 2:
        return {}
    low, high = np.percentile(sample, INTERVAL, axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def _mattering(slopes: Floats) -> NDArray[np.bool_]:
    """Return which parameters move any prediction: the exponent of a term with a factor of zero does not, (P,)."""
    norms = np.linalg.norm(slopes, axis=0)
    return np.asarray(norms * DEPENDENT > norms.max())
