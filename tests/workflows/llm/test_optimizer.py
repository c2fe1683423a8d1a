"""AdamW, clipping and the learning rate against torch's own and against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from launch import checkpoint
from launch.errors import CheckpointError
from workflows.llm.config import ModelConfig, OptimizerConfig
from workflows.llm.model import Transformer, loss
from workflows.llm.optimizer import (
    AdamW,
    MissingGradientError,
    clip,
    gradients,
    learning_rate,
    load_state_arrays,
    state_arrays,
)

MODEL = ModelConfig(width=16, layers=2, seq_len=8, vocab_size=256)
SETTINGS = OptimizerConfig(beta1=0.8, beta2=0.97, eps=1e-6, weight_decay=0.3)


def made(dtype: torch.dtype = torch.float64, seed: int = 0, settings: OptimizerConfig = SETTINGS):
    model = Transformer(MODEL, seed, dtype)
    return model, AdamW(model, settings)


def fill_gradients(model: Transformer, step: int) -> None:
    tokens = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(step))
    loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()


def train(model: Transformer, optimizer: AdamW, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        fill_gradients(model, step)
        optimizer.step(0.01 / (1 + step))


def torchs_adamw(model: Transformer) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": SETTINGS.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    betas = (SETTINGS.beta1, SETTINGS.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=SETTINGS.eps, foreach=False)


def test_ten_steps_are_those_of_torchs_adamw_without_decay_of_the_norms():
    (mine, optimizer), theirs = made(), Transformer(MODEL, 0, torch.float64)
    reference = torchs_adamw(theirs)
    for step in range(10):
        train(mine, optimizer, range(step, step + 1))
        reference.zero_grad()
        fill_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = 0.01 / (1 + step)
        reference.step()
    for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14, msg=name)
        moments = (reference.state[other][key] for key in ("exp_avg", "exp_avg_sq"))
        for moment, wanted in zip(optimizer.moments[name], moments, strict=True):
            torch.testing.assert_close(moment, wanted, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("largest", [1e-3, 0.5, 1e9])
def test_clipping_is_torchs(largest):
    (mine, _), theirs = made(), Transformer(MODEL, 0, torch.float64)
    for model in (mine, theirs):
        fill_gradients(model, 0)
    norm = clip(gradients(mine), largest)
    wanted = torch.nn.utils.clip_grad_norm_(theirs.parameters(), largest)
    assert norm == pytest.approx(wanted.item(), rel=1e-14)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_shows_in_the_norm(bad):
    model, _ = made()
    fill_gradients(model, 0)
    model.norm.weight.grad[0] = bad
    assert not math.isfinite(clip(gradients(model), 1.0))


def test_a_missing_gradient_is_named_and_an_old_one_does_not_stand_in_for_it():
    model, optimizer = made()
    fill_gradients(model, 0)
    assert len(gradients(model)) == len(list(model.parameters()))
    optimizer.zero_grad()
    model.blocks["1"].requires_grad_(False)
    fill_gradients(model, 0)
    model.blocks["1"].requires_grad_(True)
    with pytest.raises(MissingGradientError, match=r"^no gradient for blocks\.1\.attention_norm\.weight, "):
        gradients(model)


def test_a_frozen_parameter_needs_no_gradient_and_stays():
    model = Transformer(MODEL, 0)
    model.embedding.weight.requires_grad_(False)
    before = model.embedding.weight.clone()
    train(model, AdamW(model, SETTINGS), range(2))
    assert len(gradients(model)) == len(list(model.parameters())) - 1
    assert torch.equal(model.embedding.weight, before)


def rates(n_steps: int, **settings) -> list[float]:
    config = OptimizerConfig(**{"min_lr_ratio": 0.1, **settings})
    return [learning_rate(step, n_steps, 2.0, config) for step in range(n_steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("n_steps", [2, 7, 20, 1000])
def test_a_rate_rises_in_a_line_to_its_peak_and_falls_to_its_last(schedule, n_steps):
    found = rates(n_steps, schedule=schedule, warmup_fraction=0.1, decay_fraction=0.3)
    warmup = math.ceil(0.1 * n_steps)
    assert found[:warmup] == pytest.approx([2.0 * (i + 1) / warmup for i in range(warmup)])
    assert max(found) == 2.0 == found[warmup - 1]
    assert found[-1] == pytest.approx(0.2)
    assert found[warmup - 1 :] == sorted(found[warmup - 1 :], reverse=True)


def test_cosine_is_half_way_down_in_the_middle_of_its_decay():
    found = rates(1000, schedule="cosine", warmup_fraction=0.1)
    assert found[549] == pytest.approx(1.1)
    assert found[324] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_wsd_is_constant_and_then_straight():
    found = rates(100, schedule="wsd", warmup_fraction=0.1, decay_fraction=0.2)
    assert set(found[9:80]) == {2.0}
    assert np.diff(found[79:]) == pytest.approx([-1.8 / 20] * 20)


@pytest.mark.parametrize(
    ("settings", "n_steps", "wanted"),
    [
        ({}, 1, [2.0]),
        ({"warmup_fraction": 0}, 1, [0.2]),
        ({"warmup_fraction": 1}, 4, [0.5, 1.0, 1.5, 2.0]),
        ({"warmup_fraction": 0, "min_lr_ratio": 0}, 2, [1.0, 0.0]),
        ({"warmup_fraction": 0, "schedule": "wsd", "decay_fraction": 1}, 2, [1.1, 0.2]),
        ({"warmup_fraction": 0, "schedule": "wsd", "decay_fraction": 0}, 2, [2.0, 2.0]),
        ({"min_lr_ratio": 1, "warmup_fraction": 0.5}, 4, [1.0, 2.0, 2.0, 2.0]),
    ],
)
def test_short_and_extreme_runs_have_the_rates_that_their_settings_say(settings, n_steps, wanted):
    assert rates(n_steps, **settings) == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_went_to_disk_goes_on_bit_by_bit(tmp_path, dtype):
    (model, optimizer), (other, its_optimizer) = made(dtype), made(dtype, seed=1)
    train(model, optimizer, range(3))
    checkpoint.save(tmp_path, 3, state_arrays(model, optimizer), {})
    load_state_arrays(other, its_optimizer, checkpoint.load(tmp_path).arrays)
    train(model, optimizer, range(3, 6))
    train(other, its_optimizer, range(3, 6))
    one, two = state_arrays(model, optimizer), state_arrays(other, its_optimizer)
    assert len(one) == 4 * len(list(model.parameters()))
    for name, array in one.items():
        assert array.tobytes() == two[name].tobytes(), name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda array: None, "the checkpoint holds no array 'moment1/norm.weight'"),
        (
            lambda array: array[:1],
            r"array 'moment1/norm.weight' is float64\[1\] in the checkpoint, float64\[16\] in",
        ),
        (
            lambda array: array.astype("f4"),
            r"'moment1/norm.weight' is float32\[16\] in the checkpoint, float64\[16\]",
        ),
    ],
)
def test_a_state_of_another_model_is_refused(change, sentence):
    model, optimizer = made()
    arrays = {**state_arrays(model, optimizer)}
    changed = change(arrays.pop("moment1/norm.weight"))
    if changed is not None:
        arrays["moment1/norm.weight"] = changed
    with pytest.raises(CheckpointError, match=sentence):
        load_state_arrays(model, optimizer, arrays)
