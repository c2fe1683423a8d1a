"""Matrices spread over ranks by rows: who owns what, and the cases of spread_cases.py in worlds of 1 to 4 ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_ops.columns import numbered
from mpi_ops.errors import LayoutError
from mpi_ops.partition import RowPartition, balanced, even
from tests.cases_on_ranks import names

MODULE = "tests.mpi_ops.spread_cases"


@pytest.mark.parametrize("case", names(MODULE))
@pytest.mark.parametrize("ranks", [3, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 2, 4))])
def test_on_ranks(faults_on_ranks, ranks, case):
    reached = faults_on_ranks(MODULE, ranks)
    assert case in reached, f"not reached, for {list(reached)[-1]} failed before"
    found = reached[case]
    assert not found, "\n".join(f"rank {rank}: {text}" for rank, text in found.items())


@given(st.lists(st.integers(0, 50), min_size=8, max_size=60), st.integers(1, 8))
@settings(deadline=None)
def test_every_row_has_one_owner_and_every_rank_a_row(weights, ranks):
    made = balanced(weights, np.arange(len(weights) + 1), ranks)
    owners = made.owner(np.arange(made.n_rows))
    assert set(owners.tolist()) == set(range(ranks))
    for rank in range(ranks):
        assert np.flatnonzero(owners == rank).tolist() == list(made.rows(rank))


def test_rows_are_shared_by_weight_and_not_by_number():
    weights = np.array([1000, *[1] * 1000])
    made = balanced(weights, np.arange(1002), 2)
    assert made.starts == (0, 1, 1001)
    heavy = np.random.default_rng(0).zipf(1.8, 4000).clip(max=400)
    shares = np.add.reduceat(heavy, balanced(heavy, np.arange(4001), 4).starts[:-1])
    assert shares.max() <= shares.mean() + heavy.max()


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(LayoutError, match="5 ranks cannot share 4 rows") as caught:
        even(4, 5)
    assert caught.value.exit_code == 2
    with pytest.raises(LayoutError, match="do not ascend"):
        RowPartition((0, 3, 3, 5))


@pytest.mark.parametrize("n_rows", [60, 10**9], ids=["by a table", "by sorting"])
def test_columns_are_numbered_own_rows_first(n_rows):
    columns = np.random.default_rng(3).integers(0, 60, 200).astype(np.int32)
    for mine in (range(20), range(20, 45), range(45, 60)):
        halo, local = numbered(columns, mine, n_rows)
        assert halo.tolist() == sorted(set(columns.tolist()) - set(mine))
        assert np.array_equal(np.concatenate([mine, halo])[local], columns)
