"""The filter of ProNE as its authors' code sums it."""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import Chebyshev

from workflows.embedding.methods import prone


def bessel(order: int) -> float:
    """Return the modified Bessel function I_order(theta), by its series."""
    half = prone.THETA / 2
    return sum(half ** (2 * k + order) / (math.factorial(k) * math.factorial(k + order)) for k in range(20))


def test_the_series_in_the_walk_is_the_authors_sum_but_for_fp32_rounding():
    """Ten of their polynomials of (L - mu I)^2, for every eigenvalue that a walk can have."""
    p = np.linspace(-1, 1, 401)
    square = (1 - p - prone.MU) ** 2
    before, now = np.ones_like(p), square / 2 - 1
    total = bessel(0) * before - 2 * bessel(1) * now
    for order in range(2, 10):
        before, now = now, (square - 2) * now - before
        total += 2 * (-1) ** order * bessel(order) * now
    largest = np.abs(1 - total).max()
    got = Chebyshev.interpolate(prone.band_pass, prone.DEGREE)(p)
    assert np.abs(got - (1 - total)).max() < np.finfo(np.float32).eps / 4 * largest
