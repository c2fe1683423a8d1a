"""What may not matter to a fit does not, whatever it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import fit, laws
from analysis.minimise import minimise
from tests.analysis.studies import losses, study

FEW = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
EXPONENTS = st.floats(-9, 9)


@FEW
@given(seed=st.integers(0, 99), size=EXPONENTS, tokens=EXPONENTS, loss=st.floats(-3, 3))
def test_units_rescale_the_factors_exactly(seed, size, tokens, loss):
    points = study(seed)
    n, d, y = 10.0**size, 10.0**tokens, 10.0**loss
    moved = replace(points, x={"N": points.N * n, "D": points.D * d}, y=points.y * y)
    one, other = (fit("chinchilla", some, bootstrap=0) for some in (points, moved))
    assert other.objective == pytest.approx(one.objective, rel=1e-8)
    p = one.params
    want = {"A": p["A"] * y * n ** p["alpha"], "B": p["B"] * y * d ** p["beta"], "E": p["E"] * y}
    if not one.unidentified:
        assert other.params == pytest.approx({**p, **want}, rel=1e-4)


@FEW
@given(seed=st.integers(0, 99), order=st.permutations(range(20)), factor=st.floats(-6, 6))
def test_neither_order_nor_weight_nor_repetition_matters(seed, order, factor):
    points, chosen = study(seed), laws.get("chinchilla")
    problem = chosen.bind(points)
    start = problem.starts(1)
    once = minimise(problem, start, np.ones((1, 20)), 1e-3)
    twice = chosen.bind(points.take(np.array([*order, *order])))
    again = minimise(twice, start, np.full((1, 40), 10.0**factor / 2), 1e-3)
    assert again.converged.all()
    assert again.objective == pytest.approx(once.objective * 10.0**factor, rel=1e-8)


@FEW
@given(seed=st.integers(0, 99), tau=st.floats(0.05, 0.95))
def test_an_asymmetric_minimum_is_one(seed, tau):
    """No neighbour is lower, by a sum that shares no code with the fit."""
    points = study(seed, noise=0.02)
    found = fit("chinchilla", points, delta=1.0, tau=tau, bootstrap=0)

    def objective(p):
        r = np.log(losses("chinchilla", p, points.N, points.D) / points.y)
        return (np.where(r > 0, 1 - tau, tau) * r**2).sum()

    assert found.objective == pytest.approx(objective(found.params), rel=1e-9)
    for name, value in found.params.items():
        for factor in (1 - 1e-4, 1 + 1e-4):
            assert objective({**found.params, name: value * factor}) >= found.objective * (1 - 1e-12)
