"""Cases of experts shared over four ranks, functions `test_*(ranks)`; test_moe.py starts and judges them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mpi_ops.errors import LayoutError
from tests.mpi_ops.ring_attention_cases import Group, report
from workflows.llm.moe import MixtureOfExperts, shard_experts

WIDTH, FFN_WIDTH, EXPERTS, BATCH, LENGTH = 6, 10, 8, 3, 7
TOLERANCE = 1e-10


def layer(top_k: int = 2, capacity_factor: float | None = None) -> MixtureOfExperts:
    """Return a layer in fp64 with a bias, the same on every rank."""
    torch.manual_seed(4)
    made = MixtureOfExperts(WIDTH, FFN_WIDTH, EXPERTS, top_k, capacity_factor).double()
    made.bias.copy_(0.03 * torch.randn(EXPERTS))
    return made


def tokens(rank: int, salt: int = 0) -> tuple[Tensor, Tensor]:
    """Return a rank's own tokens and what their outputs are weighted with in its loss."""
    generator = torch.Generator().manual_seed(100 * salt + rank)
    x, weight = torch.randn(2, BATCH, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), weight


@dataclass(frozen=True)
class Ranks:
    """A group that shares experts, and what the reduction over the rest of the world needs."""

    group: Group
    replicas: Group
    """The ranks that hold the same experts."""

    def average(self, mixture: MixtureOfExperts) -> None:
        """Make the gradients those of the mean loss, as shard_experts documents it."""
        average([mixture.router.weight.grad])
        experts = [weight.grad for weight in mixture.experts.parameters()]
        average(experts, self.replicas)
        for grad in experts:
            grad /= self.group.size()

    def own(self, stacked: Tensor) -> Tensor:
        """Return this rank's experts of all."""
        return stacked.chunk(self.group.size())[self.group.rank()]


def layouts(world_size: int) -> dict[str, Ranks]:
    """Return experts over all of four ranks, over neighbours, over every other rank, and over none."""
    everyone = list(range(world_size))
    near, far = _my_part([0, 1], [2, 3]), _my_part([0, 2], [1, 3])
    world, alone = _my_part(everyone), _my_part(*([rank] for rank in everyone))
    return {
        "over the world": Ranks(world, alone),
        "over neighbours": Ranks(near, far),
        "over every other rank": Ranks(far, near),
        "on every rank": Ranks(alone, world),
    }


def _my_part(*parts: list[int]) -> Group:
    """Return the group of the part that this rank is in; all ranks make all groups."""
    made = [dist.new_group(part) for part in parts]
    [mine] = (group for group, part in zip(made, parts, strict=True) if dist.get_rank() in part)
    return mine


def average(tensors: list[Tensor], group: Group = None) -> None:
    for tensor in tensors:
        dist.all_reduce(tensor, group=group)
        tensor /= dist.get_world_size(group)


def close(name: str, got: Tensor, want: Tensor) -> None:
    error = (got - want).abs().max().item()
    assert error <= TOLERANCE * want.abs().max().item(), f"{name} is off by {error:.1e}"


def on_one_rank(whole: MixtureOfExperts) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and gradients of the inputs of all ranks' tokens; leave the mean loss's gradients in `whole`."""
    inputs, weights = zip(*(tokens(rank) for rank in range(dist.get_world_size())), strict=True)
    outs = [whole(x) for x in inputs]
    torch.stack([(out * weight).mean() for out, weight in zip(outs, weights, strict=True)]).mean().backward()
    return [out.detach() for out in outs], [x.grad for x in inputs]


def compare(ranks: Ranks, whole: MixtureOfExperts) -> None:
    """Fail unless sharing the experts gives all that one rank gives for all tokens."""
    mixture = copy.deepcopy(whole)
    shard_experts(mixture, ranks.group)
    outs, dxs = on_one_rank(whole)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    x, weight = tokens(rank)
    out = mixture(x)
    (out * weight).mean().backward()
    ranks.average(mixture)
    close("out", out, outs[rank])
    close("dx", x.grad / world_size, dxs[rank])
    close("router", mixture.router.weight.grad, whole.router.weight.grad)
    for name, parameter in mixture.experts.named_parameters():
        close(name, parameter.grad, ranks.own(whole.experts.get_parameter(name).grad))
    for name in ("counts", "dropped"):
        summed = mixture.get_buffer(name).clone()
        dist.all_reduce(summed)
        assert torch.equal(summed, whole.get_buffer(name)), f"{name}: {summed}, not {whole.get_buffer(name)}"


def test_no_token_is_dropped(ranks: Ranks) -> None:
    compare(ranks, layer())


def test_one_expert_a_token(ranks: Ranks) -> None:
    compare(ranks, layer(top_k=1))


def test_all_experts_for_every_token(ranks: Ranks) -> None:
    compare(ranks, layer(top_k=EXPERTS))


def test_the_same_tokens_are_dropped(ranks: Ranks) -> None:
    whole = layer(capacity_factor=1.0)
    compare(ranks, whole)
    assert 0 < whole.dropped < whole.counts.sum()


def test_ranks_that_no_token_comes_to(ranks: Ranks) -> None:
    whole = layer()
    whole.bias[2:] -= 100
    compare(ranks, whole)
    assert whole.counts[2:].sum() == 0


def test_a_few_steps_of_training(ranks: Ranks) -> None:
    """The loads, and with them the biases, are those of all ranks' tokens."""
    whole, shared = layer(), layer()
    shard_experts(shared, ranks.group)
    everyone = range(dist.get_world_size())
    for step in range(4):
        mean = sum((whole(x) * weight).sum() for x, weight in (tokens(rank, step) for rank in everyone)) / 4
        mean.backward()
        x, weight = tokens(dist.get_rank(), step)
        (shared(x) * weight).sum().backward()
        ranks.average(shared)
        loads = shared.take_loads()
        dist.all_reduce(loads)
        for mixture, load in ((whole, whole.take_loads()), (shared, loads)):
            _descend(mixture)
            mixture.update_bias(load[:-1], 0.05)
    assert torch.equal(shared.bias, whole.bias)
    close("router", shared.router.weight, whole.router.weight)
    for name, parameter in shared.experts.named_parameters():
        close(name, parameter, ranks.own(whole.experts.get_parameter(name)))


@torch.no_grad()
def _descend(mixture: MixtureOfExperts) -> None:
    for parameter in mixture.parameters():
        parameter -= 0.01 * parameter.grad
    mixture.zero_grad()


def test_ranks_that_do_not_divide_the_experts(ranks: Ranks) -> None:
    size = ranks.group.size()
    if size > 1:
        mixture = MixtureOfExperts(WIDTH, FFN_WIDTH, size + 1, 1)
        with pytest.raises(
            LayoutError, match=f"{size + 1} experts over {size} ranks: a number of ranks that"
        ):
            shard_experts(mixture, ranks.group)


def test_a_layer_that_is_sharded_twice(ranks: Ranks) -> None:
    mixture = layer()
    shard_experts(mixture, ranks.group)
    with pytest.raises(LayoutError, match="sharded already"):
        shard_experts(mixture, ranks.group)


if __name__ == "__main__":
    report(globals(), layouts)
