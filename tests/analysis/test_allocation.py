"""Compute-optimal sizes without a law of the loss, on surfaces whose optimum is known."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from analysis import Observations, fit, laws
from analysis.allocation import curves_of, envelope, isoflop
from analysis.errors import DataError
from tests.analysis.studies import TRUTH, losses, observe, study
from workflows.fits import parametric

A_TRUE = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])


def budgets(noise: float = 0.0, around: float = 3.0) -> Observations:
    """Return 9 sizes around the optimum of each of 5 budgets."""
    values = {name: np.asarray(value) for name, value in TRUTH.items()}
    N, C = [], np.geomspace(1e18, 1e22, 5)
    for flops in C:
        N.append(
            laws.get("chinchilla").compute_optimal(values, flops)["N"] * np.geomspace(1 / around, around, 9)
        )
    sizes, D = np.concatenate(N), np.repeat(C, 9) / 6 / np.concatenate(N)
    scatter = np.exp(noise * np.random.default_rng(0).standard_normal(len(sizes)))
    return observe(sizes, D, losses("chinchilla", TRUTH, sizes, D) * scatter)


@pytest.mark.parametrize("vertex", ["parabola", "interpolation"])
def test_isoflop_minima_have_the_laws_own_exponent(vertex):
    found = isoflop(budgets(), vertex=vertex, bootstrap=0)
    assert found.a == pytest.approx(A_TRUE, abs=0.003)
    assert found.a + found.b == 1
    assert (found.interval, found.dropped, len(found.optima)) == (None, [], 5)
    values = {name: np.asarray(value) for name, value in TRUTH.items()}
    assert found.size(1e20) == pytest.approx(
        laws.get("chinchilla").compute_optimal(values, 1e20)["N"], rel=0.1
    )


def test_isoflop_intervals_hold_the_truth():
    found = isoflop(budgets(noise=0.001), bootstrap=200, seed=1)
    low, high = found.interval
    assert low < A_TRUE < high
    assert found == isoflop(budgets(noise=0.001), bootstrap=200, seed=1)


def test_a_budget_without_a_minimum_is_dropped_and_named():
    points = budgets()
    beyond_the_first_optimum = np.arange(5, len(points))
    bare = isoflop(points.take(beyond_the_first_optimum), bootstrap=0)
    [sentence] = bare.dropped
    assert re.match(r"C = 1e\+18: the vertex N = .* lies outside the sizes tried", sentence)
    assert bare.a == pytest.approx(A_TRUE, abs=0.01)


def test_a_budget_that_curves_downwards_is_dropped():
    points = budgets()
    hill = np.where(np.arange(len(points)) < 9, 2 * points.y[:9].max() - points.y, points.y)
    [sentence] = isoflop(replace(points, y=hill), bootstrap=0).dropped
    assert sentence.endswith("the losses do not curve upwards")


def test_too_few_budgets_are_refused():
    with pytest.raises(DataError, match=r"simulated: 1 budgets show a minimum, an exponent needs 3"):
        isoflop(budgets().take(np.arange(9)))
    with pytest.raises(DataError, match="vertex 'line': there is parabola, interpolation"):
        isoflop(budgets(), vertex="line")


def curves() -> Observations:
    N = np.geomspace(1e7, 1e10, 25)
    D = np.geomspace(1e8, 3e11, 60)
    sizes, tokens = (column.ravel() for column in np.meshgrid(N, D, indexing="ij"))
    points = observe(sizes, tokens, losses("chinchilla", TRUTH, sizes, tokens))
    return Observations(
        points.x, points.y, points.labels, "simulated", runs=tuple(f"N{size:.4g}" for size in sizes)
    )


def test_the_envelope_of_curves_has_the_laws_own_exponent():
    found = envelope(curves_of(curves()))
    assert found.a == pytest.approx(A_TRUE, abs=0.03)
    assert found.dropped
    assert {N for _, N, _ in found.optima}.isdisjoint({1e7, curves().N.max()})


def test_a_fit_whose_term_vanishes_has_no_exponents():
    found = fit("chinchilla", study(1, noise=0.002), bootstrap=0)
    assert parametric(found).a == pytest.approx(
        found.params["beta"] / (found.params["alpha"] + found.params["beta"])
    )
    with pytest.raises(
        DataError, match="no trade between size and tokens: a term of the fitted law vanishes"
    ):
        parametric(replace(found, params={**found.params, "B": 0.0}))


def test_an_envelope_needs_curves():
    with pytest.raises(DataError, match=r"the envelope needs curves, and no column says which run"):
        curves_of(budgets())
    with pytest.raises(DataError, match=r"envelope: 2 of 2 runs have curves; three sizes"):
        envelope(curves_of(curves())[:2])
