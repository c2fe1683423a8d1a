"""The cross-entropy over a shared vocabulary is torch's over the whole one, also where exponentials overflow."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mpi_ops.vocabulary import cross_entropy, vocabulary_share
from tests.mpi_ops.on_ranks.world import World

TOKENS, ROWS = 6, 11


def _compare(world: World, logits_TV: torch.Tensor) -> None:
    targets_T = torch.arange(TOKENS) * 2 % ROWS
    whole_TV = logits_TV.clone().requires_grad_()
    want = F.cross_entropy(whole_TV, targets_T)
    want.backward()
    first, end = vocabulary_share(ROWS, world.size, world.rank)
    mine_TV = logits_TV[:, first:end].clone().requires_grad_()
    got = cross_entropy(mine_TV, targets_T, first, dist.group.WORLD)
    got.backward()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine_TV.grad, whole_TV.grad[:, first:end], rtol=1e-12, atol=1e-15)


def test_it_is_that_of_the_whole_vocabulary(world: World):
    _compare(
        world, torch.randn(TOKENS, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )


def test_one_rank_may_hold_by_far_the_largest_logits(world: World):
    for column in (0, ROWS - 1):
        logits_TV = torch.zeros(TOKENS, ROWS, dtype=torch.float64)
        logits_TV[:, column] = 1e4
        _compare(world, logits_TV)
