"""AdamW, clipping and the learning rate against torch's own and against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workflows.llm.config import ModelConfig, OptimizerConfig
from workflows.llm.model import Transformer, loss
from workflows.llm.optimizer import AdamW, clip, learning_rate, state

MODEL = ModelConfig(width=16, layers=2, seq_len=8, vocab_size=256)
SETTINGS = OptimizerConfig(beta1=0.8, beta2=0.97, eps=1e-6, weight_decay=0.3)


def made(dtype: torch.dtype = torch.float64, seed: int = 0, settings: OptimizerConfig = SETTINGS):
    model = Transformer(MODEL, seed, dtype)
    return model, AdamW(dict(model.named_parameters()), settings)


def gradients(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


def fill_gradients(model: Transformer, step: int) -> None:
    tokens = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(step))
    loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()


def train(model: Transformer, optimizer: AdamW, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        fill_gradients(model, step)
        optimizer.step(0.01 / (1 + step), gradients(model))


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
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), largest).item()
    clip(gradients(mine).values(), norm, largest)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-13, atol=0)


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


def test_the_state_is_the_memory_of_the_parameters_and_moments():
    model, optimizer = made()
    train(model, optimizer, range(2))
    held = state(dict(model.named_parameters()), optimizer)
    assert len(held) == 3 * len(list(model.parameters()))
    held["weight/norm.weight"][...] = 5.0
    held["moment2/norm.weight"][...] = 7.0
    assert (model.norm.weight == 5.0).all()
    assert (optimizer.moments["norm.weight"][1] == 7.0).all()
