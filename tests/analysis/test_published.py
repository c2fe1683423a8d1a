"""Laws against the data and figures of the papers that they come from. Data beside the project; skips are loud."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from analysis import fit, read_table
from analysis.allocation import isoflop
from analysis.step_law import StepLaw, Sweep


def rows(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def column(table: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in table])


def test_parallel_streams_have_the_published_coefficients(shared_data):
    """arXiv 2505.10475, Stack-V2 Python: E .6912, A 1.13e7, k .3935, alpha .1894, R2 .9978."""
    columns = {"N": "n_params_nonemb", "P": "P", "L": "loss"}
    points = read_table(shared_data("scaling/parscale_stack.csv"), columns, ("N", "P"))
    found = fit("parscale", points, bootstrap=0)
    assert found.objective <= 3.6768e-5
    assert found.params["E"] == pytest.approx(0.6912, abs=5e-5)
    assert found.params["k"] == pytest.approx(0.3935, abs=5e-5)
    assert found.params["alpha"] == pytest.approx(0.1894, abs=5e-5)
    assert found.params["A"] == pytest.approx(1.13e7, abs=5e4)
    predicted = np.array([found.predict(N=N, P=P) for N, P in zip(*points.x.values(), strict=True)])
    unexplained = ((points.y - predicted) ** 2).sum() / ((points.y - points.y.mean()) ** 2).sum()
    assert 1 - unexplained == pytest.approx(0.9978, abs=2e-4)
    binary = fit(
        "parscale", replace(points, x={**points.x, "P": points.x["P"] ** (1 / np.log(2))}), bootstrap=0
    )
    assert abs(binary.params["k"] - 0.3935) > 0.1


def test_over_training_is_predicted_with_the_published_errors(shared_data):
    """Gadre et al. 2024: five small runs predict a 32 times over-trained and a 300 times larger one."""
    columns = {"N": "N", "D": "D", "L": "loss_c4_val"}
    runs = read_table(shared_data("scaling/gadre_rpj.csv"), columns)
    M = runs.columns(("M",))["M"]
    small = ((runs.N < 1e9) & (np.abs(M - 20) < 1)) | ((runs.N < 2e7) & (np.abs(M - 320) < 1))
    held_out = ((runs.N > 1e9) & (M > 600)) | (runs.N > 5e9)
    assert (small.sum(), held_out.sum()) == (5, 2)
    found = fit("chinchilla_tied", runs.take(np.flatnonzero(small)), scale="linear", delta=1.0, bootstrap=0)
    errors = [
        100 * abs(found.predict(N=runs.N[i], D=runs.D[i]) / runs.y[i] - 1) for i in np.flatnonzero(held_out)
    ]
    assert sorted(errors) == pytest.approx([0.7103, 0.7320], abs=1e-4)


@pytest.mark.parametrize(
    ("warmup", "decay", "counted"),
    [
        ("long", "kaplan", "kaplan"),
        ("long", "kaplan", "standard"),
        ("short", "kaplan", "standard"),
        ("short", "chinchilla", "standard"),
    ],
)
def test_isoflop_minima_have_the_published_exponents(shared_data, warmup, decay, counted):
    """Porian et al. 2024, RefinedWeb: the exponent through the optima that the authors released."""
    where = {"warmup": warmup, "decay": decay, "param_count": counted}
    released = [
        row
        for row in rows(shared_data("scaling/porian_optimal_pairs_rw_base.csv"))
        if row["n_star"] and all(row[name] == text for name, text in where.items())
    ]
    log_c, log_n = np.log(column(released, "flops")), np.log(column(released, "n_star"))
    want = np.polyfit(log_c, log_n, 1, w=1 / column(released, "n_star_std"))[0]
    columns = {"N": "n", "C": "flops", "L": "loss", "size": "param_count"}
    points = read_table(shared_data("scaling/porian_isoflop_points_rw_base.csv"), columns, where=where)
    found = isoflop(points, vertex="interpolation", bootstrap=20)
    assert found.a == pytest.approx(want, abs=0.01)
    assert points.size_convention == counted


@pytest.fixture(scope="module")
def sweep(shared_data) -> Sweep:
    table = rows(shared_data("scaling/steplaw_dense_lr_bs_loss.csv"))
    N, D, rate, loss = (column(table, name) for name in ("N", "D", "lr", "smooth loss"))
    return Sweep(N, D, rate, 2048 * column(table, "bs"), loss)


def test_the_step_law_is_the_mean_of_its_released_resamples(shared_data):
    table = rows(shared_data("scaling/steplaw_1000_bootstrap_params.csv"))
    mean = {name: column(table, name).mean() for name in table[0]}
    law = StepLaw()
    assert np.exp(mean["lr_intercept"]) == pytest.approx(law.lr_factor, abs=0.01)
    assert np.exp(mean["bs_intercept"]) == pytest.approx(law.batch_factor, abs=0.005)
    assert mean["lr_coefN"] == pytest.approx(law.lr_size, abs=5e-4)
    assert mean["lr_coefD"] == pytest.approx(law.lr_tokens, abs=1e-3)
    assert mean["bs_coefD"] == pytest.approx(law.batch_tokens, abs=5e-4)


def test_the_step_law_costs_hardly_any_loss(sweep):
    excess = sweep.excess(StepLaw())
    assert len(excess) == 17
    assert excess.mean() <= 0.0012
    assert excess.max() <= 0.004
    for wrong in (replace(StepLaw(), lr_size=0.0), replace(StepLaw(), batch_factor=0.58 / 2048)):
        assert sweep.excess(wrong).mean() > 0.0012


def test_every_cell_of_the_sweep_is_a_bowl(sweep):
    assert (sweep.bowls() > 0).all()
    assert len(sweep.near_best()) == 129


def test_no_law_of_one_input_explains_the_published_chinchilla_points_as_well(shared_data):
    columns = {"N": "Model Size", "C": "Training FLOP", "L": "loss"}
    epoch = read_table(shared_data("scaling/epoch_chinchilla_245.csv"), columns).drop_highest_loss(5)
    objective = {
        law: fit(law, epoch, bootstrap=0).objective
        for law in ("chinchilla", "chinchilla_tied", "kaplan", "power_offset")
    }
    assert min(objective, key=objective.__getitem__) == "chinchilla"
    found = fit("chinchilla", epoch, bootstrap=100)
    assert any(sentence.startswith("the exclusions decide the answer") for sentence in found.warnings)
