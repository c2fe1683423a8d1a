"""torch's own data parallelism trains over the backend what it trains over gloo, and what one process trains."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.mpi_ops.on_ranks.world import World

STEPS, BATCH, WIDTH = 3, 8, 24


def _model() -> nn.Module:
    torch.manual_seed(7)
    layers = [
        nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH)) for _ in range(3)
    ]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1)).double()


def _train(model: nn.Module, rank: int = 0, size: int = 1) -> list[float]:
    """Return the rank's losses of STEPS steps on its share of one fixed batch a step."""
    generator = torch.Generator().manual_seed(11)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        x_BD = torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=generator)
        share = x_BD.chunk(size)[rank]
        loss = (model(share) - share.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _data_parallel(pair, group, _):
    model = DistributedDataParallel(_model(), process_group=group, bucket_cap_mb=0.01)
    losses = _train(model, pair.rank, pair.size)
    return losses, [each.detach() for each in model.parameters()]


def _fully_sharded(pair, group, reshard):
    model, mesh = _model(), DeviceMesh.from_group(group, "cpu")
    for layer in model:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    losses = _train(model, pair.rank, pair.size)
    return losses, [each.full_tensor().detach() for each in model.parameters()]


def _equal_everywhere(world: World, train, reshard=None):
    single = deepcopy(_model())
    single_losses = _train(single)
    for pair in world.pairs:
        losses, weights = train(pair, pair.mpi, reshard)
        gloo_losses, gloo_weights = train(pair, pair.gloo, reshard)
        torch.testing.assert_close(losses, gloo_losses, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights, gloo_weights, rtol=0, atol=1e-12)
        everyone = [None] * pair.size
        dist.all_gather_object(everyone, losses, pair.mpi)
        means = [sum(step) / pair.size for step in zip(*everyone, strict=True)]
        torch.testing.assert_close(means, single_losses, rtol=1e-9, atol=0)
        for mine, its in zip(weights, single.parameters(), strict=True):
            assert (mine - its).abs().max() <= 1e-9 * its.abs().max()


def test_ddp_with_small_buckets(world: World):
    _equal_everywhere(world, _data_parallel)


def test_fsdp2_that_reshards_after_the_forward_pass(world: World):
    _equal_everywhere(world, _fully_sharded, True)


def test_fsdp2_that_keeps_its_parameters(world: World):
    _equal_everywhere(world, _fully_sharded, False)
