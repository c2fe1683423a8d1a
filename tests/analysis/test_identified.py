"""What the data cannot tell is said: a warning, a parameter without a number, or a refusal."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from analysis import fit, laws, minimise
from analysis.errors import DataError, NotConvergedError
from analysis.summary import coefficient_rows
from tests.analysis.studies import TRUTH, grid, losses, measure, observe, study


def test_a_good_study_is_identified():
    found = fit("chinchilla", study(1, noise=0.002), bootstrap=200)
    assert found.unidentified == {}
    assert found.warnings == []
    assert found.stderr.keys() == TRUTH.keys()


def test_sizes_and_tokens_in_one_ratio_are_warned_about():
    N = np.geomspace(1e7, 1e9, 16)
    scatter = np.exp(0.003 * np.random.default_rng(0).standard_normal(16))
    found = fit(
        "chinchilla", observe(N, 20 * N, losses("chinchilla", TRUTH, N, 20 * N) * scatter), bootstrap=20
    )
    assert "ln N and ln D are correlated (1.000): their exponents are hard to tell apart" in found.warnings
    assert {"B", "beta"} <= found.unidentified.keys()


def test_equal_exponents_on_one_ratio_are_collinear():
    N = np.geomspace(1e7, 1e9, 16)
    found = fit("chinchilla", observe(N, N.copy(), 1.7 + 400 / N**0.3), bootstrap=100)
    assert {"B", "beta"} <= found.unidentified.keys() or {"A", "alpha"} <= found.unidentified.keys()


def test_a_vanishing_term_is_told_from_the_others():
    found = fit("chinchilla", study(0, noise=0.0, B=0.0), bootstrap=100)
    assert found.params["B"] == pytest.approx(0, abs=1e-9)
    assert found.unidentified.keys() == {"B", "beta"}
    assert found.unidentified["beta"] == "its term vanishes: any value fits as well"
    assert found.params["alpha"] == pytest.approx(TRUTH["alpha"], rel=1e-6)


def test_what_is_not_identified_has_no_standard_error():
    found = fit("chinchilla", study(0, noise=0.003, B=0.0), bootstrap=200)
    assert {"B", "beta"} <= found.unidentified.keys()
    assert found.stderr.keys() == TRUTH.keys() - found.unidentified.keys() != set()
    for row in coefficient_rows(found):
        assert (row[2] == "") == row[4].startswith("NOT IDENTIFIED: ") == (row[0] in found.unidentified)


def test_what_is_not_a_number_is_null_in_json():
    found = fit("chinchilla", study(0), bootstrap=0)
    no_trade = replace(found, params={**found.params, "B": 0.0})
    told = json.loads(json.dumps(no_trade.to_json(), allow_nan=False))
    assert told["params"] == no_trade.params
    assert [optimum["N"] for optimum in told["compute_optimal"]] == [None] * len(found.budgets())


@pytest.mark.parametrize(
    ("N", "D", "sentence"),
    [
        ([1, 2, 3, 1, 2], [1, 2, 3, 2, 3], "5 points with 3 distinct N and 3 distinct D"),
        ([7] * 9, range(1, 10), "9 points with 1 distinct N and 9 distinct D"),
        ([7, 8] * 5, range(1, 11), "10 points with 2 distinct N and 10 distinct D"),
        (range(1, 10), [4] * 9, "9 points with 9 distinct N and 1 distinct D"),
    ],
)
def test_points_too_few_or_too_alike_are_refused(N, D, sentence):
    N, D = 1e7 * np.array(N, float), 1e9 * np.array(D, float)
    with pytest.raises(
        DataError,
        match=f"^simulated: {sentence}; the law 'chinchilla' of 5 free parameters needs at least 6 points",
    ):
        fit("chinchilla", observe(N, D, losses("chinchilla", TRUTH, N, D)))


def test_equal_losses_are_refused():
    N, D = grid()
    with pytest.raises(DataError, match=r"^simulated: all losses are 2\.5; no law follows from one value"):
        fit("chinchilla", observe(N, D, np.full(N.size, 2.5)))


@pytest.mark.parametrize("spread", [4, 40, 200])
def test_a_column_that_holds_no_losses_is_refused(spread):
    N, D = grid()
    wild = np.exp(spread * np.random.default_rng(0).standard_normal(N.size))
    with pytest.raises(DataError, match=r"^simulated: losses from .* at most a factor of 1e\+06 is fitted"):
        fit("chinchilla", observe(N, D, wild))


@pytest.mark.parametrize("exponent", [1.0, 5.0], ids=["in its derivative", "in the loss itself"])
def test_a_start_that_overflows_is_not_converged(exponent):
    problem = laws.get("chinchilla").bind(study(0))
    tiny = np.full_like(problem.y, problem.unit["N"] * np.exp(-709.0))
    steep = replace(problem, x={**problem.x, "N": tiny})
    start = np.array([[1.0, 1.0, 1.0, exponent, 1.0]])
    found = minimise.minimise(steep, start, np.ones((1, len(problem.y))), 1e-3)
    assert not found.converged[0]
    assert found.objective[0] == np.inf


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"delta": 0.0}, {"delta": float("nan")}, {"bootstrap": -1}):
        with pytest.raises(DataError, match=r"delta is positive, bootstrap at least 0"):
            fit("chinchilla", study(0), **wrong)


def test_too_few_resamples_are_warned_about():
    found = fit("chinchilla", study(0), bootstrap=50)
    assert "50 bootstrap resamples are too few for 95 % intervals" in found.warnings
    none = fit("chinchilla", study(0), bootstrap=0)
    assert (none.warnings, none.stderr, none.intervals, none.interval(N=1e8, D=1e10)) == ([], {}, {}, None)


def test_a_fit_that_did_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(minimise, "MAX_STEPS", 3)
    with pytest.raises(
        NotConvergedError, match=r"^simulated: the chinchilla fit stopped at a scaled gradient of"
    ) as caught:
        fit("chinchilla", study(0))
    assert caught.value.exit_code == 6


def test_a_resample_that_did_not_converge_is_said_and_left_out(monkeypatch):
    whole = fit("chinchilla", study(0), bootstrap=0)
    monkeypatch.setattr("analysis.fitting.minimise", _short_after_the_first())
    found = fit("chinchilla", study(0), bootstrap=200)
    assert found.params == whole.params
    assert found.bootstrap_failed == 200 - len(found.sample) > 0
    assert (
        f"{found.bootstrap_failed} of 200 bootstrap resamples did not converge and are left out"
        in found.warnings
    )


def _short_after_the_first():
    calls = []

    def minimise_once(*args):
        calls.append(args)
        steps = minimise.MAX_STEPS
        minimise.MAX_STEPS = steps if len(calls) == 1 else 6
        try:
            return minimise.minimise(*args)
        finally:
            minimise.MAX_STEPS = steps

    return minimise_once


def test_exclusions_that_decide_the_answer_are_said():
    points = study(1, noise=0.002)
    bent = replace(points, y=np.where(np.arange(20) < 2, 1.5 * points.y.max(), points.y))
    found = fit("chinchilla", bent.drop_highest_loss(2), delta=1.0, bootstrap=100)
    [sentence] = [warning for warning in found.warnings if "exclusions" in warning]
    assert sentence.startswith("the exclusions decide the answer; with all points: ")
    harmless = fit("chinchilla", points.drop_highest_loss(1), delta=1.0, bootstrap=100)
    assert not any("exclusions" in warning for warning in harmless.warnings)


def test_a_slope_of_either_sign_is_as_good_as_any():
    x = np.geomspace(1, 1e4, 30)
    flat = measure("log_linear", {"x": x}, 2 + 0.01 * np.random.default_rng(0).standard_normal(30))
    found = fit("log_linear", flat, bootstrap=100)
    assert found.intervals["m"][0] < 0 < found.intervals["m"][1]
    assert found.unidentified == {}


def test_one_point_to_spare_gives_no_interval():
    N, D = grid(3, 2)
    few = observe(*(np.append(a, b) for a, b in zip((N, D), (3e8, 3e10), strict=True)), np.geomspace(4, 2, 7))
    found = fit("kaplan", few.take(np.arange(2, 7)), bootstrap=200)
    assert "1 more points than parameters: no interval is given, at least 2 are needed" in found.warnings
    assert (found.intervals, found.stderr, len(found.sample)) == ({}, {}, 0)


def test_predictions_far_outside_say_so():
    found = fit("chinchilla", study(0), bootstrap=0)
    assert found.far(N=1e9, D=1e11) == ""
    assert found.far(N=1e12, D=1e11) == "1000 times beyond the fitted range of N"


def test_badly_tuned_runs_above_a_law_weigh_as_little_as_is_asked():
    points = study(1, 6, 6, noise=0.0)
    rng = np.random.default_rng(0)
    bad = rng.random(len(points)) < 0.3
    above = replace(points, y=points.y * np.exp(np.where(bad, 0.05 * rng.random(len(points)), 0.0005)))
    off = []
    for tau in (0.5, 0.1):
        found = fit("chinchilla", above, delta=1.0, tau=tau, bootstrap=0)
        predicted = np.array([found.predict(N=N, D=D) for N, D in zip(points.N, points.D, strict=True)])
        off.append(np.log(predicted / points.y).mean())
        assert found.tau == tau
    assert abs(off[1]) < 0.4 * abs(off[0]), off


@pytest.mark.parametrize("asked", [{"tau": 0.0}, {"tau": 1.0}, {"scale": "square"}])
def test_a_loss_that_is_none_is_refused(asked):
    with pytest.raises(
        DataError, match=r"^scale=.*, tau=.*: there is log and linear, and tau between 0 and 1"
    ):
        fit("chinchilla", study(0), bootstrap=0, **asked)
