"""How sure a fit is, three ways that agree where they should, and what early data cannot say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from analysis import Observations, fit
from analysis.errors import DataError
from analysis.fitting import profile_of
from analysis.resampling import Resampling, parse_resampling, weights_of
from tests.analysis.studies import measure, outcomes, study

REWARD = {"A": 0.61, "R0": 0.22, "B": 1.9, "C_mid": 2500.0}
START = {"R0": 0.22}


def curve(end: float, seed: int = 0, noise: float = 0.006) -> Observations:
    C = np.arange(100.0, end + 1, 100.0)
    scatter = noise * np.random.default_rng(seed).standard_normal(len(C))
    return measure("rl_sigmoid", {"C": C}, outcomes("rl_sigmoid", REWARD, {"C": C}) + scatter)


def test_a_curve_that_has_bent_tells_its_asymptote():
    for seed in range(5):
        found = fit("rl_sigmoid", curve(16000, seed), hold=START, bootstrap=0)
        assert found.params["A"] == pytest.approx(0.61, abs=0.004)
        assert found.params["B"] == pytest.approx(1.9, abs=0.08)
        assert found.params["C_mid"] == pytest.approx(2500, abs=80)
        assert found.unidentified == {}


@pytest.mark.parametrize("seed", range(6))
def test_an_early_curve_does_not(seed):
    found = fit("rl_sigmoid", curve(2000, seed), hold=START, bootstrap=100)
    low, high = found.intervals["A"]
    assert "A" in found.unidentified or high - low > 0.2
    assert found.params["A"] <= 1 + 1e-12


def test_even_a_perfect_early_curve_does_not():
    found = fit("rl_sigmoid", curve(2000, noise=0.0), hold=START, bootstrap=0)
    assert found.params["A"] == pytest.approx(0.61, rel=1e-4)
    assert found.unidentified["A"] == (
        "asymptote not identified: the largest compute is 0.8 C_mid, 1.5 are needed"
    )


def test_the_logit_of_the_gain_is_a_line_over_ln_compute():
    C = np.geomspace(10, 1e5, 30)
    gain = (outcomes("rl_sigmoid", REWARD, {"C": C}) - 0.22) / (0.61 - 0.22)
    np.testing.assert_allclose(
        np.log(gain / (1 - gain)), 1.9 * (np.log(C) - np.log(2500)), rtol=1e-9, atol=1e-9
    )


def test_recipes_with_one_asymptote_are_told_apart_by_their_speed():
    C = np.tile(np.arange(100.0, 12001, 100), 2)
    g = np.repeat([1.0, 2.0], 120)
    truth = {"A": 0.61, "R0": 0.22, "B[1]": 2.01, "B[2]": 1.77, "C_mid[1]": 2500.0, "C_mid[2]": 2500.0}
    y = outcomes("rl_sigmoid_tied", truth, {"C": C, "g": g})
    noisy = y + 0.003 * np.random.default_rng(0).standard_normal(240)
    found = fit(
        "rl_sigmoid_tied", measure("rl_sigmoid_tied", {"C": C, "g": g}, noisy), hold=START, bootstrap=60
    )
    assert found.params["A"] == pytest.approx(0.61, abs=0.004)
    assert found.intervals["B[2]"][1] < found.intervals["B[1]"][0]


def sizes(seed: int, noise: float = 0.01) -> tuple[Observations, dict[str, float]]:
    N = np.array([0.5, 1.5, 3, 7, 14, 32, 72]) * 1e9
    rng = np.random.default_rng(seed)
    truth = {"K_max": 0.32, "N0": 6e9, **{f"E[{n:g}]": rng.uniform(-0.5, 0.5) for n in N}}
    x = dict(zip("XN", (c.ravel() for c in np.meshgrid(np.geomspace(1e2, 1e5, 25), N)), strict=True))
    y = outcomes("rl_power_kn", truth, x) * np.exp(noise * rng.standard_normal(175))
    return measure("rl_power_kn", x, y), truth


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(s, marks=pytest.mark.full) for s in range(3, 20))]
)
def test_efficiency_that_saturates_with_size_is_recovered(seed):
    points, truth = sizes(seed)
    found = fit("rl_power_kn", points, bootstrap=0)
    assert found.params["K_max"] == pytest.approx(0.32, rel=0.03)
    assert found.params["N0"] == pytest.approx(6e9, rel=0.1)

    def residual(theta: np.ndarray) -> np.ndarray:
        p = dict(zip(truth, [theta[0], np.exp(theta[1]), *theta[2:]], strict=True))
        return np.log(outcomes("rl_power_kn", p, points.x) / points.y)

    rng = np.random.default_rng(seed)
    starts = [[rng.uniform(0, 2), np.log(rng.uniform(1e8, 1e11)), *np.zeros(7)] for _ in range(5)]
    best = min(least_squares(residual, start).cost for start in starts)
    assert found.objective <= best * (1 + 1e-9)


def test_the_three_uncertainties_agree_on_many_normal_errors():
    points = study(5, 9, 9, noise=0.003)
    found = fit("chinchilla", points, delta=1.0, bootstrap=400)
    for name, error in found.stderr.items():
        assert found.covariance[name][name] ** 0.5 == pytest.approx(error, rel=0.3), name
    low, high = profile_of(found, points, "E")
    assert low < found.params["E"] < high
    assert [low, high] == pytest.approx(found.intervals["E"], abs=0.6 * found.stderr["E"])
    assert found.covariance["alpha"]["E"] > 0


def test_what_is_drawn_together_stays_together():
    points = study(0)
    by_run = Observations(points.x, points.y, points.labels, "here", runs=tuple("abcd" * 5))
    drawn = weights_of(by_run, Resampling("run"), range(50), 0)
    assert all(len(set(row[i::4])) == 1 for row in drawn for i in range(4))
    blocks = weights_of(points, parse_resampling("block:5"), range(50), 0)
    assert all(len(set(row[i : i + 5])) == 1 for row in blocks for i in range(0, 20, 5))
    single = weights_of(points, Resampling(), range(50), 0)
    assert (single.sum(axis=1) == 20).all()
    assert any(len(set(row[:5])) > 1 for row in single)


def test_intervals_of_autocorrelated_points_are_wider_by_block():
    rng = np.random.default_rng(0)
    C = np.arange(100.0, 16001, 100)
    drift = np.convolve(rng.standard_normal(len(C) + 19), np.ones(20) / 20**0.5, "valid") * 0.006
    points = measure("rl_sigmoid", {"C": C}, outcomes("rl_sigmoid", REWARD, {"C": C}) + drift)
    one, by_block = (
        fit("rl_sigmoid", points, hold=START, bootstrap=150, resampling=parse_resampling(text))
        for text in ("point", "block:20")
    )
    assert by_block.stderr["A"] > 1.5 * one.stderr["A"]


@pytest.mark.parametrize("text", ["runs", "block", "block:0", "block:x", "point:3"])
def test_other_resampling_is_refused(text):
    with pytest.raises(DataError, match="there is point, run and block:SIZE"):
        parse_resampling(text)


def test_runs_that_nobody_named_cannot_be_drawn():
    with pytest.raises(DataError, match="no column says which run a point belongs to"):
        fit("chinchilla", study(0), resampling=Resampling("run"))
