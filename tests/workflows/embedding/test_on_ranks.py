"""Graphs and vectors in worlds of 1 to 4 ranks: the cases of graph_cases.py."""

from __future__ import annotations

import json
from functools import cache

import pytest

from tests.cases_on_ranks import names

MODULE = "tests.workflows.embedding.graph_cases"


@pytest.fixture(scope="session")
def faults(mpiexec):
    @cache
    def of(ranks: int) -> dict[str, dict[str, str]]:
        ended = mpiexec(ranks, "-m", "tests.cases_on_ranks", MODULE, timeout_s=110)
        return json.loads(ended.stdout) if ended.status == 0 else {"": {"?": ended.stderr}}

    return of


@pytest.mark.parametrize("case", names(MODULE))
@pytest.mark.parametrize("ranks", [3, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 2, 4))])
def test_on_ranks(faults, ranks, case):
    found = faults(ranks).get(case)
    assert found is not None, f"not reached, for {list(faults(ranks))[-1]} failed before"
    assert not found, "\n".join(f"rank {rank}: {text}" for rank, text in found.items())
