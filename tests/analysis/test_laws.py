"""Every law of the registry, with the typical parameters and inputs that it states itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis import FitResult, Observations, fit, laws
from analysis.errors import DataError
from analysis.minimise import minimise
from tests.analysis.studies import TRUTH, grid, losses, observe, outcomes, study, typical

LAWS = pytest.mark.parametrize("law", laws.names())
TRADING = pytest.mark.parametrize("law", [name for name in laws.names() if laws.get(name).trades])
STEP = 1e-30
NOISE = 0.003


def held(law: str) -> dict[str, float]:
    """Return the parameters that the law wants measured."""
    return {name: laws.get(law).example[name] for name in laws.get(law).measured}


def fitted(law: str, points: Observations) -> FitResult:
    return fit(law, points, hold=held(law), bootstrap=0)


def points_of(problem) -> np.ndarray:
    """Return points inside the bounds, where every coordinate matters, (B, P)."""
    start = problem.starts()[0]
    lower, upper = problem.bounds()
    factors = np.random.default_rng(1).uniform(0.7, 1.4, (5, len(start)))
    return np.clip(np.where(np.abs(start) < 0.02, 0.02, start) * factors, lower, upper)


@LAWS
def test_derivatives_agree_with_a_complex_step(law):
    problem = laws.get(law).bind(typical(law), held(law))
    theta = points_of(problem)
    residual, slopes = problem.residual(theta)
    weight = np.random.default_rng(2).normal(size=residual.shape)
    curvature = problem.curvature(theta, weight)
    assert np.isrealobj(curvature)
    for k in range(theta.shape[1]):
        moved = theta.astype(complex)
        moved[:, k] += STEP * 1j
        moved_residual, moved_slopes = problem.residual(moved)
        np.testing.assert_allclose(moved_residual.imag / STEP, slopes[..., k], rtol=1e-9, atol=1e-13)
        want = np.einsum("bn,bnp->bp", weight, moved_slopes.imag / STEP)
        np.testing.assert_allclose(curvature[:, k], want, rtol=1e-8, atol=1e-11 * np.abs(slopes).max() ** 2)


@LAWS
def test_residuals_hold_the_prediction_against_what_was_observed(law):
    points = typical(law, NOISE)
    problem = laws.get(law).bind(points, held(law))
    theta = points_of(problem)
    for one, natural in zip(theta, problem.natural(theta), strict=True):
        named = dict(zip(problem.parameters, natural, strict=True))
        predicted = outcomes(law, named, points.columns(laws.get(law).inputs))
        want = np.log(predicted / points.y)
        if laws.get(law).scale == "linear":
            want = (predicted - points.y) / points.y.mean()
        np.testing.assert_allclose(problem.residual(one[None])[0][0], want, rtol=1e-9, atol=1e-12)


@LAWS
def test_perfect_data_give_every_parameter_back(law):
    found = fitted(law, typical(law))
    assert found.params == pytest.approx(laws.get(law).example, rel=1e-6)
    assert found.unidentified == {}
    assert np.abs(found.residuals).max() < 1e-11 * found.mean_loss
    assert found.params.keys() - found.held.keys() == laws.get(law).example.keys() - held(law).keys()


@LAWS
def test_the_order_of_the_rows_does_not_matter(law):
    points = typical(law, NOISE)
    order = np.random.default_rng(4).permutation(len(points))
    one, other = fitted(law, points), fitted(law, points.take(order))
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    x = {name: float(np.median(column)) for name, column in points.x.items()}
    if not laws.get(law).grouped_by:
        assert other.predict(**x) == pytest.approx(one.predict(**x), rel=1e-6)


@LAWS
def test_doubled_data_of_half_the_weight_are_the_same_data(law):
    points = typical(law, NOISE)
    chosen = laws.get(law)
    problem, double = (
        chosen.bind(some, held(law)) for some in (points, points.take(np.tile(np.arange(len(points)), 2)))
    )
    start = problem.starts()[:1]
    once = minimise(problem, start, np.ones((1, len(points))), chosen.delta)
    twice = minimise(double, start, np.full((1, 2 * len(points)), 0.5), chosen.delta)
    assert twice.objective == pytest.approx(once.objective, rel=1e-9)


@LAWS
def test_other_units_change_no_prediction(law):
    chosen, points = laws.get(law), typical(law, NOISE)
    linked = {*chosen.absolute, *chosen.same_unit, *chosen.same_unit.values(), chosen.grouped_by}
    factors = {name: 1.0 if name in linked else 10.0 ** -(3 + i) for i, name in enumerate(chosen.inputs)}
    moved = replace(points, x={name: column * factors[name] for name, column in points.x.items()})
    one, other = fitted(law, points), fitted(law, moved)
    assert other.objective == pytest.approx(one.objective, rel=1e-8)
    x = {name: float(column[len(column) // 2]) for name, column in points.x.items()}
    there = {name: value * factors[name] for name, value in x.items()}
    assert other.predict(**there) == pytest.approx(one.predict(**x), rel=1e-6)


@LAWS
def test_intervals_come_from_resamples_that_all_converge(law):
    points = typical(law, NOISE)
    found = fit(law, points, hold=held(law), bootstrap=40)
    assert found.bootstrap_failed == 0
    assert len(found.sample) + found.bootstrap_undetermined == 40
    assert found.intervals.keys() == found.params.keys() - found.held.keys()
    inside = []
    for i, outcome in enumerate(points.y):
        low, high = found.interval(**{name: float(column[i]) for name, column in points.x.items()})
        inside.append(low <= outcome <= high)
    assert np.mean(inside) >= 0.8, "prediction intervals hold what was observed"


@TRADING
@pytest.mark.parametrize("flops", [1e18, 1e21, 1e25])
def test_no_other_division_of_the_flops_is_better_than_the_optimum(law, flops):
    values = {name: np.asarray(value) for name, value in laws.get(law).example.items()}
    best = laws.get(law).compute_optimal(values, flops)
    assert 6 * best["N"] * best["D"] == pytest.approx(flops, rel=1e-12)
    N = best["N"] * np.concatenate([np.geomspace(1e-3, 1e3, 2001), 1 + np.linspace(-1e-3, 1e-3, 201)])
    around = laws.get(law).predict(values, {"N": N, "D": flops / 6 / N})
    assert best["L"] <= around.min() * (1 + 1e-14)
    assert around[0] > best["L"] < around[2000]


def test_a_law_without_a_trade_says_so():
    with pytest.raises(DataError, match=r"^the law 'power' says nothing on how to divide compute"):
        laws.get("power").compute_optimal({}, 1e20)


@LAWS
def test_too_few_points_are_refused(law):
    points = typical(law)
    with pytest.raises(DataError, match=r"^simulated: 1 points .* needs at least"):
        laws.get(law).bind(points.take(np.array([0])), held(law))


@pytest.mark.parametrize("law", ["chinchilla", "chinchilla_tied"])
def test_a_held_parameter_stays_and_the_others_follow(law):
    found = fit(law, study(1, noise=0.002), hold={"E": 1.5}, bootstrap=50)
    assert found.params["E"] == pytest.approx(1.5, rel=1e-15)
    assert "E" not in {*found.intervals, *found.stderr, *found.unidentified, *found.active_bounds}
    free = fit(law, study(1, noise=0.002), bootstrap=0)
    assert found.objective > free.objective
    again = fit(law, study(1, noise=0.002), hold={"E": free.params["E"]}, bootstrap=0)
    assert again.params == pytest.approx(free.params, rel=1e-6)


@pytest.mark.parametrize(
    ("law", "hold", "sentence"),
    [
        ("chinchilla", {"A": 1.0}, "chinchilla: 'A' cannot be held; there is E, alpha, beta"),
        ("chinchilla", {"E": float("nan")}, "chinchilla: E is held at nan, a number is needed"),
        ("rl_sigmoid", {}, "rl_sigmoid: R0 is measured, not fitted: hold it"),
    ],
)
def test_what_cannot_be_held_is_refused(law, hold, sentence):
    with pytest.raises(DataError, match=f"^{sentence}"):
        laws.get(law).bind(typical(law), hold)


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
