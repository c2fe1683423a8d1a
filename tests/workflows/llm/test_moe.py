"""The mixture of experts against a loop over tokens, in one process; with its experts on four ranks, against that."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from workflows.llm.moe import MixtureOfExperts

WIDTH, FFN_WIDTH, EXPERTS = 5, 7, 6


def cases() -> list[str]:
    """Return the names of the cases, read from the source: MPI stays with the ranks."""
    tree = ast.parse(Path(__file__).with_name("moe_cases.py").read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("test_")]


@pytest.fixture(scope="module")
def faults(mpiexec):
    """What went wrong on four ranks, by case, then rank and layout."""
    ended = mpiexec(4, "-m", "tests.workflows.llm.moe_cases", timeout_s=100)
    assert ended.status == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("case", cases(), ids=lambda name: name.removeprefix("test_"))
def test_on_ranks(faults, case):
    assert not faults[case], "\n".join(f"{place}: {text}" for place, text in faults[case].items())


def layer(top_k: int = 2, capacity_factor: float | None = None, experts: int = EXPERTS) -> MixtureOfExperts:
    torch.manual_seed(3)
    made = MixtureOfExperts(WIDTH, FFN_WIDTH, experts, top_k, capacity_factor).double()
    made.bias.copy_(0.05 * torch.randn(experts))
    return made


def tokens(batch: int = 3, length: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, length, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)


def token_by_token(mixture: MixtureOfExperts, x_BLD: Tensor, capacity: float) -> Tensor:
    """Return what the layer is to give, from its definition."""
    rows = []
    for sequence in x_BLD:
        taken = Counter()
        for x in sequence:
            scores = (mixture.router.weight @ x).softmax(0)
            chosen = sorted(range(len(scores)), key=lambda e: -(scores[e] + mixture.bias[e]).item())[
                : mixture.top_k
            ]
            total, out = sum(scores[e] for e in chosen) if len(chosen) > 1 else 1, torch.zeros_like(x)
            for e in chosen:
                taken[e] += 1
                if taken[e] <= capacity:
                    gate, up, down = (weight[e] for weight in mixture.experts.parameters())
                    out = out + scores[e] / total * (down @ (F.silu(gate @ x) * (up @ x)))
            rows.append(out)
    return torch.stack(rows).view_as(x_BLD)


@pytest.mark.parametrize(
    ("top_k", "capacity_factor", "capacity"),
    [
        (1, None, 99),
        (2, None, 99),
        (EXPERTS, None, 99),
        (2, 1.0, 3),
        (2, 0.7, 2),
        (1, 0.5, 1),
        (2, 100.0, 99),
    ],
)
def test_the_layer_is_the_sum_over_each_tokens_experts(top_k, capacity_factor, capacity):
    mixture, x = layer(top_k, capacity_factor), tokens()
    inputs = [x, *mixture.parameters()]
    got, want = mixture(x), token_by_token(mixture, x, capacity)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    weight = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view_as(got)
    grads = [torch.autograd.grad((out * weight).sum(), inputs) for out in (got, want)]
    for mine, its in zip(*grads, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_gradients_are_derivatives(capacity_factor):
    mixture, x = layer(2, capacity_factor, experts=3), tokens(batch=2, length=3)
    names, weights = zip(*mixture.named_parameters(), strict=True)

    def forward(x, *weights):
        return functional_call(mixture, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *weights))


def test_a_token_depends_on_no_later_one_and_on_no_other_sequence():
    mixture, x = layer(2, capacity_factor=0.7).eval(), tokens().detach()
    whole = mixture(x)
    for length in range(1, x.shape[1]):
        other = torch.cat((x[:, :length], x.flip(0, 1)[:, length:]), 1)
        torch.testing.assert_close(mixture(other)[:, :length], whole[:, :length], rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.cat([mixture(each) for each in x.split(1)]), whole, rtol=0, atol=1e-13)


def test_what_is_over_capacity_is_counted_and_so_is_every_choice():
    mixture, x = layer(2, capacity_factor=1.0), tokens(batch=4)
    chosen = mixture.route(x.flatten(0, 1))[0].view(4, -1)
    for microbatch in (x[:1], x[1:]):
        mixture(microbatch)
    loads = torch.stack([torch.bincount(each, minlength=EXPERTS) for each in chosen])
    assert torch.equal(mixture.counts, loads.sum(0))
    assert mixture.dropped == (loads - 3).clamp(min=0).sum() > 0
    with torch.no_grad():
        mixture(x)
    assert torch.equal(mixture.counts, loads.sum(0)), "an evaluation is no load"
    assert mixture.take_loads().tolist() == [*loads.sum(0).tolist(), (loads - 3).clamp(min=0).sum()]
    assert mixture.take_loads().tolist() == [0] * (EXPERTS + 1)


def test_an_expert_that_nobody_chose_has_a_gradient_all_the_same():
    mixture = layer()
    mixture.bias[0] -= 100
    mixture(tokens()).sum().backward()
    assert mixture.counts[0] == 0
    for weight in mixture.experts.parameters():
        assert weight.grad[0].abs().max() == 0 < weight.grad[1:].abs().max()


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_a_forward_pass_that_backward_repeats_is_no_load(capacity_factor):
    mixture, x = layer(2, capacity_factor), tokens()
    checkpoint(mixture, x, use_reentrant=False).sum().backward()
    repeated = mixture.take_loads()
    mixture(x).sum().backward()
    assert torch.equal(mixture.take_loads(), repeated)


def test_the_bias_moves_by_the_rate_towards_the_mean():
    mixture = MixtureOfExperts(WIDTH, FFN_WIDTH, 4, 1)
    mixture.update_bias(torch.tensor([0, 9, 3, 0]), rate=0.25)
    mixture.update_bias(torch.tensor([0, 9, 3, 0]), rate=0.5)
    assert mixture.bias.tolist() == [0.75, -0.75, 0.0, 0.75]


def test_the_bias_levels_the_loads_of_a_skewed_router():
    mixture, x = layer(), tokens(batch=8, length=32).detach()
    x[..., 0] = 1
    with torch.no_grad():  # two that nearly all tokens prefer
        mixture.router.weight[:3] = 0
        mixture.router.weight[1:3, 0] = 0.7
    largest = []
    for _ in range(300):
        mixture(x)
        counts = mixture.take_loads()[:-1].double()
        largest.append((counts.max() / counts.mean()).item())
        mixture.update_bias(counts, rate=0.001)
    assert largest[0] > 2.3
    assert max(largest[-20:]) < 1.25


def test_narrow_floats_are_routed_in_single_precision():
    mixture, x = layer().bfloat16(), tokens().detach().bfloat16()
    _, weight = mixture.route(x.flatten(0, 1))
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.sum(-1), torch.ones(len(weight)), rtol=0, atol=1e-6)
    out = mixture(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.double(), token_by_token(mixture.double(), x.double(), 99), rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_k": 0}, "top_k=0 of 6 experts: 1 to 6"),
        ({"top_k": 7}, "top_k=7 of 6 experts: 1 to 6"),
        ({"capacity_factor": 0.0}, "capacity_factor=0.0: more than 0, or none for no limit"),
        ({"capacity_factor": float("nan")}, "capacity_factor=nan: more than 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        layer(**options)
