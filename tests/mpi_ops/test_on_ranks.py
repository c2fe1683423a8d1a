"""The mpi4py backend, case by case, in worlds of 1 to 4 ranks; the cases themselves stand in on_ranks/."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest

MODULES = {
    "moves": (1, 2, 3, 4),
    "reductions": (1, 2, 3, 4),
    "point_to_point": (1, 2, 3, 4),
    "counting": (2, 3),
    "refusals": (2,),
    "handles": (2, 3),
    "buckets": (2, 3),
    "vocabulary": (2, 3),
    "pipelines": (2,),
    "meshes": (4,),
    "lives": (2, 3),
}
"""Worlds in which each module's cases run; `lives` ends with another default group than it began with."""


def cases() -> list:
    """Return (ranks, module, case) for all of MODULES, read from the sources: torch and MPI stay with the ranks."""
    found = []
    for module, worlds in MODULES.items():
        tree = ast.parse((Path(__file__).parent / "on_ranks" / f"{module}.py").read_text())
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        found += [
            pytest.param(ranks, module, name, id=f"{module}-{name.removeprefix('test_')}-on_{ranks}")
            for ranks in worlds
            for name in names
            if name.startswith("test_")
        ]
    return found


@pytest.fixture(scope="session")
def faults(mpiexec, request):
    """Return `of(ranks)`: what went wrong in a world of that size, by module and case, then rank.

    Each world runs the modules of which a case was selected.
    """
    selected = {
        (item.callspec.params["ranks"], item.callspec.params["module"])
        for item in request.session.items
        if getattr(item, "originalname", "") == test_the_backend.__name__
    }

    @cache
    def of(ranks: int) -> dict[str, dict[str, str]]:
        modules = [module for module in MODULES if (ranks, module) in selected]
        ended = mpiexec(ranks, "-m", "tests.mpi_ops.on_ranks.program", *modules, timeout_s=110)
        return json.loads(ended.stdout) if ended.status == 0 else {"": {"?": ended.stderr}}

    return of


@pytest.mark.parametrize(("ranks", "module", "case"), cases())
def test_the_backend(faults, ranks, module, case):
    report = faults(ranks)
    found = report.get(f"{module}.{case}")
    assert found is not None, f"not reached, for {list(report)[-1] or report} failed before"
    assert not found, "\n".join(f"rank {rank}: {text}" for rank, text in found.items())


def test_a_program_may_end_without_leaving(mpiexec):
    ended = mpiexec(2, "-m", "tests.mpi_ops.on_ranks.ends_at_once")
    assert (ended.status, ended.stderr) == (0, "")
    assert sorted(ended.stdout.split()) == ["called", "called", "returned", "returned"]


@pytest.mark.full
@pytest.mark.timeout(300)
def test_more_groups_come_and_go_than_mpi_has_room_for_at_once(mpiexec):
    ended = mpiexec(2, "-m", "tests.mpi_ops.on_ranks.program", "many_lives", timeout_s=280)
    assert json.loads(ended.stdout) == {"many_lives.test_three_thousand_groups_come_and_go": {}}, ended.stderr
