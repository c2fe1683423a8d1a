"""Intervals from the profile of the objective: of every parameter of every law, whatever function of the fit it is."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import fit, laws
from analysis.errors import DataError, NotConvergedError
from analysis.fitting import profile_of
from analysis.profile import profile
from tests.analysis.studies import study, typical

QUICK = ("amdahl", "chinchilla", "kaplan", "parscale", "rl_sigmoid", "usl")
LAWS = [pytest.param(law, marks=[] if law in QUICK else pytest.mark.full) for law in laws.names()]
NOISE = 0.0003


def held(law: str) -> dict[str, float]:
    return {name: laws.get(law).example[name] for name in laws.get(law).measured}


@pytest.mark.parametrize("law", LAWS)
def test_every_parameter_has_an_interval_about_as_wide_as_its_standard_error_says(law):
    """Where errors are small and normal, profile and covariance are one: 1.96 standard errors to each side."""
    points = typical(law, NOISE)
    found = fit(law, points, hold=held(law), delta=1.0, bootstrap=0)
    checked = 0
    for name in found.params.keys() - found.held.keys():
        low, high = profile_of(found, points, name, held(law))
        assert low < found.params[name] < high
        error = found.covariance.get(name, {}).get(name, np.inf) ** 0.5
        if error < 0.05 * abs(found.params[name]):
            assert [low, high] == pytest.approx(
                [found.params[name] - 1.96 * error, found.params[name] + 1.96 * error], abs=0.35 * error
            )
            checked += 1
    assert checked


@pytest.mark.parametrize("name", ["alpha", "E"])
def test_the_ends_are_where_a_fit_that_holds_them_is_as_bad_as_allowed(name):
    points = study(1, noise=0.01)
    found = fit("chinchilla", points, delta=1.0, bootstrap=0)
    ends = profile_of(found, points, name)
    rises = [
        fit("chinchilla", points, hold={name: end}, delta=1.0, bootstrap=0).objective - found.objective
        for end in ends
    ]
    allowed = 3.841458820694124 / 2 * 2 * found.objective / (len(points) - 5)
    assert rises == pytest.approx([allowed, allowed], rel=0.01)


def test_a_side_that_the_data_do_not_bound_is_open():
    points = study(0, noise=0.02, B=0.0)
    found = fit("chinchilla", points, bootstrap=0, delta=1.0)
    assert profile_of(found, points, "beta") == (-np.inf, np.inf)
    low, high = profile_of(found, points, "B")
    assert (low, high > 0) == (-np.inf, True)


def test_an_exact_fit_is_sure_of_everything():
    points = study(0, noise=0.0)
    found = fit("chinchilla", points, bootstrap=0)
    low, high = profile_of(found, points, "A")
    assert low == high == pytest.approx(found.params["A"])


def test_an_end_that_is_not_reached_is_an_error(monkeypatch):
    monkeypatch.setattr("analysis.profile.MOST_STEPS", 1)
    points = study(1, noise=0.01)
    found = fit("chinchilla", points, delta=1.0, bootstrap=0)
    with pytest.raises(
        NotConvergedError, match=r"^chinchilla: the profile of A stopped at .* times the allowed rise"
    ):
        profile_of(found, points, "A")


def test_what_has_no_profile_is_refused():
    points = study(0, noise=0.02)
    found = fit("chinchilla", points, hold={"E": 1.7}, bootstrap=0)
    with pytest.raises(DataError, match=r"^chinchilla: no profile of 'E'; there is A, B, alpha, beta$"):
        profile_of(found, points, "E", {"E": 1.7})
    problem = laws.get("power").bind(typical("power", 0.02))
    with pytest.raises(DataError, match=r"^A: [0-4] residuals lie within delta = 1e-06; a profile needs 5$"):
        profile(problem, problem.starts(1)[0], 1e-6, "A")
