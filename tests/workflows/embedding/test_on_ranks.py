"""Graphs and vectors in worlds of 1 to 4 ranks: the cases of the modules beside this."""

from __future__ import annotations

import pytest

from tests.cases_on_ranks import names

MODULES = [f"tests.workflows.embedding.{name}" for name in ("graph_cases", "locality_cases", "ogb_cases")]


@pytest.mark.parametrize(("module", "case"), [(module, case) for module in MODULES for case in names(module)])
@pytest.mark.parametrize("ranks", [3, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 2, 4))])
def test_on_ranks(faults_on_ranks, ranks, module, case):
    reached = faults_on_ranks(module, ranks)
    assert case in reached, f"not reached, for {list(reached)[-1]} failed before"
    found = reached[case]
    assert not found, "\n".join(f"rank {rank}: {text}" for rank, text in found.items())
