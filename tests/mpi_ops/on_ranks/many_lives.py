"""The long form of lives.py: MPICH has about 2,000 communicators to give at a time."""

from __future__ import annotations

from tests.mpi_ops.on_ranks.lives import come_and_go
from tests.mpi_ops.on_ranks.world import World


def test_three_thousand_groups_come_and_go(world: World):
    come_and_go(world, 3000)
