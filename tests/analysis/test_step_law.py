"""Fitting and using a law of learning rate and batch, on a sweep whose exponents are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.errors import DataError
from analysis.step_law import StepLaw, Sweep

LAW = StepLaw(2.0, -0.6, 0.25, 0.7, 0.55)


def sweep(sizes: int = 4, lengths: int = 4) -> Sweep:
    """Return a grid of 25 x 25 runs around the optimum of each cell, the loss a bowl in logarithms."""
    N, D = (c.ravel() for c in np.meshgrid(np.geomspace(1e8, 1e9, sizes), np.geomspace(1e9, 1e11, lengths)))
    u, v = (c.ravel() for c in np.meshgrid(np.linspace(-2, 2, 25), np.linspace(-2, 2, 25)))
    rate, batch = LAW.optimum(N[:, None], D[:, None])
    bowl = 2.5 * (1 + 0.01 * u**2 + 0.006 * v**2 + 0.003 * u * v)
    shape = (len(N), len(u))
    return Sweep(
        *(
            np.broadcast_to(c, shape).ravel()
            for c in (N[:, None], D[:, None], rate * np.exp(u), batch * np.exp(v), bowl)
        )
    )


def test_known_exponents_are_recovered():
    found = sweep().fit()
    assert found.lr_size == pytest.approx(LAW.lr_size, abs=0.02)
    assert found.lr_tokens == pytest.approx(LAW.lr_tokens, abs=0.02)
    assert found.batch_tokens == pytest.approx(LAW.batch_tokens, abs=0.02)
    assert sweep().excess(found).max() < 1e-4
    assert sweep().bowls() == pytest.approx(0.0111, abs=2e-4)


def test_a_sweep_of_one_size_is_refused():
    with pytest.raises(DataError, match="sweep: 4 cells; two sizes and two numbers of tokens"):
        sweep(sizes=1).fit()


def test_a_run_without_a_loss_is_named():
    whole = sweep()
    with pytest.raises(DataError, match="sweep: run 3: loss is nan"):
        replace(whole, loss=np.where(np.arange(len(whole.loss)) == 3, np.nan, whole.loss))


def test_the_batch_is_a_multiple_of_what_the_ranks_take():
    law = StepLaw()
    assert law.sequences(4e8, 1e11, 2048) == round(0.58 * 1e11**0.571 / 2048)
    assert law.sequences(4e8, 1e11, 2048, multiple=64) % 64 == 0
    assert law.sequences(4e8, 1e6, 2048, multiple=64) == 64
    assert law.remark(4e8, 8e9) == ""
    assert law.remark(4e8, 4e8).startswith("1 tokens a parameter; the published grid has")
