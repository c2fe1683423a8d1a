"""Which law made the data: told where they say so, left open where they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis import fit
from analysis.compare import Trial, aicc, compare, largest, verdict
from analysis.errors import DataError
from analysis.laws.recommender import normalised_entropy
from tests.analysis.studies import measure, study

X = np.geomspace(1, 1e3, 20)


def one_input(gamma: float, seed: int):
    """20 points over three decades with 0.3 % noise, as in the card of HSTU's scaling law."""
    scatter = np.exp(0.003 * np.random.default_rng(seed).standard_normal(len(X)))
    return measure("power", {"x": X}, 0.9 * X**-gamma * scatter)


def test_a_steep_power_law_is_told_from_a_logarithm():
    for seed in range(5):
        rows = compare(one_input(0.3, seed), ["log_linear", "power"])
        assert (rows[0].law, rows[0].delta_aicc) == ("power", 0.0)
        assert rows[1].delta_aicc > 50
        assert verdict(rows).startswith("power is preferred to log_linear")


def test_a_flat_one_is_not():
    gaps = [compare(one_input(0.01, seed), ["log_linear", "power"])[1].delta_aicc for seed in range(9)]
    assert np.median(gaps) < 2
    assert verdict(compare(one_input(0.01, 1), ["log_linear", "power"])).startswith("undecided between")


def test_the_logarithms_slope_is_recovered():
    scatter = 0.002 * np.random.default_rng(0).standard_normal(50)
    x = np.geomspace(1, 1e5, 50)
    found = fit("log_linear", measure("log_linear", {"x": x}, 2.0 - 0.1 * np.log(x) + scatter), bootstrap=100)
    assert found.params["m"] == pytest.approx(0.1, rel=0.01)
    assert found.unidentified == {}


def decades(y: np.ndarray, seed: int = 0):
    """20 values over three decades of compute, with 0.3 % noise."""
    return measure(
        "recommender",
        {"C": np.geomspace(1e15, 1e18, 20)},
        y * np.exp(0.003 * np.random.default_rng(seed).standard_normal(20)),
    )


def test_a_recommenders_line_is_recovered_and_says_where_it_leaves_what_a_share_can_be():
    C = np.geomspace(1e15, 1e20, 40)
    for h0, h1, bound in ((-0.5, 0.02, 1), (1.3, -0.012, 0)):
        scatter = 0.001 * np.random.default_rng(0).standard_normal(40)
        found = fit(
            "recommender", measure("recommender", {"C": C}, h0 + h1 * np.log(C) + scatter), bootstrap=0
        )
        assert found.params["h1"] == pytest.approx(h1, rel=0.01)
        at = np.exp((bound - found.params["h0"]) / found.params["h1"])
        assert found.warnings == [f"the line reaches {bound}, which a share cannot pass, at C = {at:.3g}"]


def test_a_recommenders_power_law_is_told_from_a_line_only_where_it_is_steep():
    C = np.geomspace(1, 1e3, 20)
    for gamma, told in ((0.3, True), (0.01, False)):
        rows = [compare(decades(0.9 * C**-gamma, seed), ["recommender", "power"]) for seed in range(5)]
        gaps = [row[1].delta_aicc for row in rows]
        assert (np.median(gaps) > 50) if told else (np.median(gaps) < 2)


def test_normalised_entropy_is_one_for_the_base_rate_and_nothing_for_an_oracle():
    happened = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0], float)
    assert normalised_entropy(happened, np.full(10, 0.3)) == pytest.approx(1, abs=1e-15)
    sure = np.where(happened == 1, 1 - 1e-12, 1e-12)
    assert normalised_entropy(happened, sure) == pytest.approx(0, abs=1e-10)
    guess = np.random.default_rng(0).uniform(0.05, 0.95, 10)
    order = np.random.default_rng(1).permutation(10)
    assert normalised_entropy(happened[order], guess[order]) == pytest.approx(
        normalised_entropy(happened, guess), rel=1e-14
    )
    log_loss = -np.mean(happened * np.log(guess) + (1 - happened) * np.log(1 - guess))
    background = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))
    assert normalised_entropy(happened, guess) == pytest.approx(log_loss / background, rel=1e-14)
    for wrong in (np.ones(10), np.full(10, 0.5)):
        with pytest.raises(DataError, match="both 0 and 1 have to happen"):
            normalised_entropy(wrong, guess)
    with pytest.raises(DataError, match="a predicted probability is not between 0 and 1"):
        normalised_entropy(happened, np.where(happened == 1, 1.0, 0.5))


def test_whether_a_datastore_has_a_floor_is_asked_of_the_data():
    S = np.geomspace(1e8, 1.4e12, 30)
    scatter = np.exp(0.002 * np.random.default_rng(0).standard_normal((2, 30)))
    floor, none = 2.1 + 40 * S**-0.2, 6.0 - 0.12 * np.log(S)
    saturating, straight = (
        compare(measure("datastore", {"S": S}, y * noise), ["datastore", "log_linear"])
        for y, noise in zip((floor, none), scatter, strict=True)
    )
    assert (saturating[0].law, straight[0].law) == ("datastore", "log_linear")
    line = fit("log_linear", measure("log_linear", {"x": S}, none), bootstrap=0)
    assert line.params["m"] == pytest.approx(0.12, rel=0.01)
    few = measure("datastore", {"S": S[::8]}, floor[::8] * scatter[0][::8])
    found = fit("datastore", few, bootstrap=100)
    assert (found.intervals, len(few)) == ({}, 4), "one degree of freedom makes no interval"
    assert "1 more points than parameters: no interval is given, at least 2 are needed" in found.warnings


def test_the_law_that_made_the_runs_foretells_the_larger_ones():
    points = study(1, 7, 7, noise=0.001)
    trial = largest(points, 0.3)
    assert len(trial.seen) + len(trial.unseen) == len(points)
    assert trial.unseen.columns("C")["C"].min() >= trial.seen.columns("C")["C"].max()
    rows = compare(points, ["kaplan", "chinchilla", "power"], trial, bootstrap=200)
    assert rows[0].law == "chinchilla"
    assert rows[0].held_out_error < 0.005 < min(row.held_out_error for row in rows[1:])
    assert rows[0].held_out_inside > 0.8
    off = Trial(trial.seen, replace(trial.unseen, y=1.1 * trial.unseen.y))
    assert compare(points, ["chinchilla", "kaplan"], off, bootstrap=200)[0].held_out_inside == 0
    assert np.isnan(compare(points, ["kaplan", "power"], trial)[0].held_out_inside), (
        "no bootstrap, no interval"
    )


def test_a_law_that_cannot_be_fitted_is_listed_with_its_reason():
    rows = compare(study(0).take(np.arange(6)), ["chinchilla", "power", "power_offset"])
    assert [row.law for row in rows][-1] == "chinchilla"
    assert "distinct D" in rows[-1].problem
    assert np.isnan(rows[-1].aicc)


def test_akaikes_criterion_is_its_formula():
    found = fit("power", one_input(0.1, 0), bootstrap=0)
    squares = np.square(found.residuals).sum()
    assert aicc(found) == pytest.approx(20 * np.log(squares / 20) + 2 * 3 + 2 * 3 * 4 / 16)


@pytest.mark.parametrize(
    ("candidates", "share", "sentence"),
    [
        (["power"], 0.25, "compare: power; name at least two laws"),
        (["power", "power"], 0.25, "name at least two laws"),
        (["power", "log_linear"], 1.0, "hold-out share 1: between 0 and 1"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(candidates, share, sentence):
    points = one_input(0.1, 0)
    with pytest.raises(DataError, match=sentence):
        compare(points, candidates, largest(points, share))


def test_points_of_one_size_leave_nothing_to_foretell():
    with pytest.raises(DataError, match="no point is larger than the others"):
        largest(measure("power", {"x": np.ones(20)}, X), 0.25)
