"""Every law of the registry, with parameters that it finds itself in one smooth surface of losses."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from analysis import Observations, fit, laws
from analysis.errors import DataError
from tests.analysis.studies import TRUTH, grid, losses, observe

LAWS = pytest.mark.parametrize("law", laws.names())
STEP = 1e-30


@cache
def truth(law: str) -> dict[str, float]:
    """Return parameters of the law that are typical, since they fit a typical surface."""
    N, D = grid(7, 6)
    return fit(law, observe(N, D, losses("chinchilla", TRUTH, N, D)), bootstrap=0).params


def perfect(law: str) -> Observations:
    N, D = grid(7, 6)
    return observe(N, D, losses(law, truth(law), N, D))


def points_of(problem: laws.Problem) -> np.ndarray:
    """Return points inside the bounds, where every coordinate matters, (B, P)."""
    start = problem.starts()[0]
    lower, upper = problem.bounds()
    factors = np.random.default_rng(1).uniform(0.7, 1.4, (5, len(start)))
    return np.clip(np.maximum(start, 0.05) * factors, lower, upper)


@LAWS
def test_derivatives_agree_with_a_complex_step(law):
    problem = laws.get(law).bind(perfect(law))
    theta = points_of(problem)
    residual, slopes = problem.residual(theta)
    weight = np.random.default_rng(2).normal(size=residual.shape)
    curvature = problem.curvature(theta, weight)
    assert np.isrealobj(curvature)
    for k in range(theta.shape[1]):
        moved = theta.astype(complex)
        moved[:, k] += STEP * 1j
        moved_residual, moved_slopes = problem.residual(moved)
        np.testing.assert_allclose(moved_residual.imag / STEP, slopes[..., k], rtol=1e-12, atol=1e-14)
        want = np.einsum("bn,bnp->bp", weight, moved_slopes.imag / STEP)
        np.testing.assert_allclose(curvature[:, k], want, rtol=1e-10, atol=1e-11)


@LAWS
def test_residuals_are_the_logarithm_of_predicted_over_observed(law):
    points = perfect(law)
    problem = laws.get(law).bind(points)
    theta = points_of(problem)
    for one, natural in zip(theta, problem.natural(theta), strict=True):
        named = dict(zip(laws.get(law).parameters, natural, strict=True))
        want = np.log(losses(law, named, points.N, points.D) / points.L)
        np.testing.assert_allclose(problem.residual(one[None])[0][0], want, rtol=1e-11, atol=1e-13)


@LAWS
def test_perfect_data_give_every_parameter_back(law):
    found = fit(law, perfect(law), bootstrap=0)
    assert found.params == pytest.approx(truth(law), rel=1e-6)
    assert found.unidentified == {}
    assert np.abs(found.residuals).max() < 1e-12


@LAWS
def test_the_order_of_the_rows_does_not_matter(law):
    points = perfect(law)
    noisy = points.L * np.exp(0.01 * np.random.default_rng(3).standard_normal(len(points)))
    order = np.random.default_rng(4).permutation(len(points))
    one = fit(law, observe(points.N, points.D, noisy), bootstrap=0)
    other = fit(law, observe(points.N[order], points.D[order], noisy[order]), bootstrap=0)
    assert other.params == pytest.approx(one.params, rel=1e-7)
    assert other.objective == pytest.approx(one.objective, rel=1e-10)


@LAWS
def test_other_units_of_size_and_tokens_change_no_prediction(law):
    points = perfect(law)
    noisy = points.L * np.exp(0.01 * np.random.default_rng(3).standard_normal(len(points)))
    one = fit(law, observe(points.N, points.D, noisy), bootstrap=0)
    other = fit(law, observe(points.N / 1e6, points.D / 1e9, noisy), bootstrap=0)
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    assert other.predict(2e9 / 1e6, 3e11 / 1e9) == pytest.approx(one.predict(2e9, 3e11), rel=1e-8)


@LAWS
@pytest.mark.parametrize("flops", [1e18, 1e21, 1e25])
def test_no_other_division_of_the_flops_is_better_than_the_optimum(law, flops):
    values = {name: np.asarray(value) for name, value in truth(law).items()}
    best = laws.get(law).compute_optimal(values, flops)
    assert 6 * best["N"] * best["D"] == pytest.approx(flops, rel=1e-12)
    N = best["N"] * np.concatenate([np.geomspace(1e-3, 1e3, 2001), 1 + np.linspace(-1e-3, 1e-3, 201)])
    around = laws.get(law).predict(values, N, flops / 6 / N)
    assert best["L"] <= around.min() * (1 + 1e-15)
    assert around[0] > best["L"] < around[2000]


@LAWS
def test_too_few_points_are_refused(law):
    with pytest.raises(DataError, match=r"^simulated: 2 points .* needs at least"):
        laws.get(law).bind(observe(np.array([1e7, 1e8]), np.array([1e9, 1e10]), np.array([4.0, 3.0])))


def test_chinchilla_is_its_closed_form_and_rescales_with_the_unit_of_size():
    N, D = grid()
    L = 1.69 + 406.4 / N**0.34 + 410.7 / D**0.28
    np.testing.assert_allclose(losses("chinchilla", TRUTH, N, D), L, rtol=1e-15)
    noisy = L * np.exp(0.01 * np.random.default_rng(3).standard_normal(N.size))
    one = fit("chinchilla", observe(N, D, noisy), bootstrap=0).params
    other = fit("chinchilla", observe(N / 1e6, D, noisy), bootstrap=0).params
    assert other["A"] * 1e6 ** other["alpha"] == pytest.approx(one["A"], rel=1e-7)
    assert {**other, "A": 0} == pytest.approx({**one, "A": 0}, rel=1e-7)


def test_without_a_trade_between_size_and_tokens_there_is_no_optimum():
    values = {name: np.asarray(value) for name, value in {**TRUTH, "B": 0.0}.items()}
    assert np.isnan(laws.get("chinchilla").compute_optimal(values, 1e20)["N"])


def test_an_unknown_law_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"^no law 'chinchila'; there is chinchilla"):
        laws.get("chinchila")
