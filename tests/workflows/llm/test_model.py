"""The network is the one that its name says: checked against numpy, against itself and against its derivatives."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch.func import functional_call

from workflows.llm.config import ModelConfig
from workflows.llm.model import Transformer, attend, loss, rotary_table, rotate

SHAPES = {
    "plain": {"width": 16, "layers": 1},
    "heads": {"width": 32, "layers": 2, "head_width": 8},
    "grouped": {"width": 32, "layers": 2, "head_width": 8, "kv_heads": 2, "tied_head": False},
    "one key head": {"width": 32, "head_width": 8, "kv_heads": 1, "ffn_width": 24, "rope_theta": 50.0},
}
VOCABULARY = 29


def network(seed: int = 0, dtype: torch.dtype = torch.float64, **shape) -> tuple[Transformer, ModelConfig]:
    """A network whose every weight is drawn, so that no part of it is hidden behind a 0."""
    config = ModelConfig(**{"seq_len": 12, "vocab_size": VOCABULARY, "norm_eps": 1e-3, **shape})
    model = Transformer(config, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.4)
    return model, config


def text(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(7))


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def turned(x_E: np.ndarray, position: int, theta: float) -> np.ndarray:
    """The pairs (i, i + E/2) of one head's vector as complex numbers, turned by the position's angle."""
    half = len(x_E) // 2
    z = (x_E[:half] + 1j * x_E[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def attention(x_LD: np.ndarray, w: dict[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """One position and one head at a time, as the formula reads."""
    E, out_LD = config.head_width, np.zeros_like(x_LD)
    for head in range(config.heads):
        key_head = head // (config.heads // config.key_heads)
        rows, key_rows = slice(head * E, head * E + E), slice(key_head * E, key_head * E + E)
        q, k = (
            [turned(matrix @ x, place, config.rope_theta) for place, x in enumerate(x_LD)]
            for matrix in (w["wq"][rows], w["wk"][key_rows])
        )
        v = [w["wv"][key_rows] @ x for x in x_LD]
        for place in range(len(x_LD)):
            scores = np.exp([q[place] @ k[past] / math.sqrt(E) for past in range(place + 1)])
            mixed = sum(s * v[past] for past, s in enumerate(scores / scores.sum()))
            out_LD[place] += w["wo"][:, rows] @ mixed
    return out_LD


def logits_by_hand(model: Transformer, config: ModelConfig, tokens_L: np.ndarray) -> np.ndarray:
    w = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    x_LD = w["embedding.weight"][tokens_L]
    for layer in range(config.layers):
        of = {name.split(".")[-2]: w[name] for name in w if name.startswith(f"blocks.{layer}.")}
        x_LD = x_LD + attention(norm(x_LD, of["attention_norm"], config.norm_eps), of, config)
        y_LD = norm(x_LD, of["ffn_norm"], config.norm_eps)
        gate = y_LD @ of["gate"].T
        x_LD = x_LD + (gate / (1 + np.exp(-gate)) * (y_LD @ of["up"].T)) @ of["down"].T
    return norm(x_LD, w["norm.weight"], config.norm_eps) @ w.get("head.weight", w["embedding.weight"]).T


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_and_loss_are_those_of_the_formulas(shape):
    model, config = network(**shape)
    tokens_BL = text()
    with torch.no_grad():
        got_BLV = model(tokens_BL)
        got_loss = loss(got_BLV, tokens_BL).item()
    want_BLV = np.stack([logits_by_hand(model, config, tokens_L) for tokens_L in tokens_BL.numpy()])
    assert np.abs(got_BLV.numpy() - want_BLV).max() <= 1e-12 * np.abs(want_BLV).max()
    chances_BLV = np.exp(want_BLV) / np.exp(want_BLV).sum(-1, keepdims=True)
    chosen = np.take_along_axis(chances_BLV, tokens_BL.numpy()[..., None], -1)
    assert got_loss == pytest.approx(-np.log(chosen).mean(), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("changed", [1, 6, 11])
@torch.no_grad()
def test_a_token_changes_its_own_and_later_logits_only(shape, changed):
    model, _ = network(**shape)
    before, tokens_BL = model(text()), text()
    tokens_BL[:, changed] = (tokens_BL[:, changed] + 1) % VOCABULARY
    moved = (model(tokens_BL) != before).any(-1).any(0)
    assert moved.tolist() == [place >= changed for place in range(12)]


@pytest.mark.parametrize("shape", [*SHAPES.values(), {"arch": "gpt", "width": 32}], ids=[*SHAPES, "gpt"])
def test_packed_documents_have_the_loss_and_gradients_of_each_alone(shape):
    """Sequences of documents of 3, 1, 8 and 12 tokens; the targets are the same, to the one after the last token."""
    model, _ = network(**shape)
    tokens_BL, targets_BL = text(), text().roll(-1, 1)
    positions_BL = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6, 7], [*range(12)]])
    packed = loss(model(tokens_BL, positions_BL), targets_BL)
    documents = [(0, 0, 3), (0, 3, 4), (0, 4, 12), (1, 0, 12)]
    alone = sum(
        loss(model(tokens_BL[row : row + 1, first:end]), targets_BL[row : row + 1, first:end]) * (end - first)
        for row, first, end in documents
    )
    assert packed.item() == pytest.approx(alone.item() / 24, rel=1e-13)
    assert abs(packed - loss(model(tokens_BL), targets_BL)).item() > 1e-3, "the mask does something"
    weights = list(model.parameters())
    for got, want in zip(
        torch.autograd.grad(packed, weights), torch.autograd.grad(alone / 24, weights), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * want.abs().max().item() + 1e-15)


@pytest.mark.parametrize("what", ["selective", "full"])
@pytest.mark.parametrize("shape", [SHAPES["grouped"], {"arch": "gpt", "width": 32}], ids=["llama", "gpt"])
@pytest.mark.parametrize("positions", [[], [torch.arange(12).expand(2, 12) % 5]], ids=["whole", "packed"])
def test_what_is_computed_again_has_the_same_gradients_bit_by_bit(shape, positions, what):
    model, _ = network(**shape)
    found = []
    for each in ("none", what):
        model.recompute(each)
        again = mock.Mock(side_effect=attend)
        for block in model.blocks.values():
            block.attention.attend = again
        gradients = torch.autograd.grad(loss(model(text(), *positions), text()), list(model.parameters()))
        found.append(gradients)
        assert again.call_count == (len(model.blocks) if each == "none" else 2 * len(model.blocks))
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


@torch.no_grad()
def test_a_shorter_sequence_has_the_logits_of_its_part():
    model, _ = network(**SHAPES["grouped"])
    torch.testing.assert_close(model(text()[:, :5]), model(text())[:, :5], rtol=0, atol=1e-13)


@pytest.mark.parametrize("shift", [1, 5])
def test_rotary_scores_depend_on_the_distance_alone(shift):
    cos, sin = rotary_table(ModelConfig(width=16), torch.float64, torch.arange(20))
    q, k = torch.randn((2, 1, 1, 1, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score(of: int, to: int) -> float:
        at = [rotate(x.expand(1, 1, 20, 16), cos, sin)[0, 0, place] for x, place in ((q, of), (k, to))]
        return (at[0] @ at[1]).item()

    for of, to in ((3, 0), (9, 9), (12, 2)):
        assert score(of + shift, to + shift) == pytest.approx(score(of, to), rel=1e-12)
        assert abs(score(of + shift, to) - score(of, to)) > 1e-3
    assert score(0, 0) == pytest.approx((q.flatten() @ k.flatten()).item(), rel=1e-14), (
        "position 0 turns nothing"
    )


@torch.no_grad()
def test_grouped_heads_equal_as_many_repeated_ones():
    grouped, config = network(**SHAPES["grouped"])
    full, _ = network(**{**SHAPES["grouped"], "kv_heads": None})
    held = {**grouped.state_dict()}
    for name, weight in held.items():
        if name.endswith(("wk.weight", "wv.weight")):
            heads = weight.view(config.key_heads, config.head_width, config.width)
            held[name] = heads.repeat_interleave(config.heads // config.key_heads, 0).flatten(0, 1)
    full.load_state_dict(held)
    torch.testing.assert_close(full(text()), grouped(text()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [SHAPES["plain"], {**SHAPES["grouped"], "layers": 1}], ids=["tied", "grouped"]
)
def test_gradients_are_the_derivatives_of_the_loss(shape):
    model, _ = network(**{**shape, "width": 16, "head_width": 4, "ffn_width": 4, "vocab_size": VOCABULARY})
    names = list(dict(model.named_parameters()))
    tokens_BL = text(1, 4)

    def loss_of(*weights: torch.Tensor) -> torch.Tensor:
        return loss(functional_call(model, dict(zip(names, weights, strict=True)), tokens_BL), tokens_BL)

    weights = tuple(weight.detach().requires_grad_() for weight in model.parameters())
    assert torch.autograd.gradcheck(loss_of, weights, fast_mode=True, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [16, 64, 256])
@torch.no_grad()
def test_the_first_loss_is_that_of_knowing_nothing(tied, width):
    model = Transformer(ModelConfig(width=width, tied_head=tied, seq_len=64), seed=3)
    tokens = torch.randint(256, (8, 65), generator=torch.Generator().manual_seed(7))
    assert loss(model(tokens[:, :-1]), tokens[:, 1:]).item() == pytest.approx(math.log(256), abs=0.15)


def weights(**arguments) -> dict[str, torch.Tensor]:
    config = ModelConfig(width=32, layers=arguments.pop("layers", 2))
    return dict(Transformer(config, **{"seed": 5, **arguments}).named_parameters())


def test_one_seed_is_one_network_whatever_else_was_drawn():
    first = weights()
    torch.randn(1000)
    for name, weight in weights().items():
        assert torch.equal(weight, first[name]), name
    for name, weight in weights(layers=3, dtype=torch.float64).items():
        assert name.startswith("blocks.2.") or torch.equal(weight.float(), first[name]), name
    drawn = [name for name, weight in weights(seed=6).items() if not torch.equal(weight, first[name])]
    assert len(drawn) == 1 + 2 * 5, "the embedding, and q, k, v, gate and up of each block"


def test_an_expert_is_the_same_however_many_there_are():
    few, many = (
        Transformer(ModelConfig(width=32, layers=1, experts=experts), seed=5).blocks["0"].ffn.experts
        for experts in (2, 4)
    )
    for name, matrices in few.named_parameters():
        assert torch.equal(many.get_parameter(name)[:2], matrices), name
    assert len({matrix.sum().item() for matrix in (*many.gate, *many.up)}) == 8


def test_names_of_parameters_stay_as_checkpoints_know_them():
    assert sorted(weights(layers=1)) == [
        "blocks.0.attention.wk.weight",
        "blocks.0.attention.wo.weight",
        "blocks.0.attention.wq.weight",
        "blocks.0.attention.wv.weight",
        "blocks.0.attention_norm.weight",
        "blocks.0.ffn.down.weight",
        "blocks.0.ffn.gate.weight",
        "blocks.0.ffn.up.weight",
        "blocks.0.ffn_norm.weight",
        "embedding.weight",
        "norm.weight",
    ]
