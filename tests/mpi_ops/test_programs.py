"""Programs against stock torch.distributed find over mpi4py what they find over gloo, and in one process."""

from __future__ import annotations

import json
from functools import cache

import pytest

PROGRAMS = {
    2: ["ddp", "fsdp2", "tensor_parallel", "pipelining", "checkpoint", "objects"],
    4: ["tensor_parallel", "hsdp", "fsdp2_tp", "pp_dp"],
}
"""Ranks -> the modules in programs/ that run on so many."""
NO_PLAIN_FORM = "other blocks skipped on other ranks"


@pytest.fixture(scope="module")
def printed(mpiexec):
    """Return `of(ranks, backend)`: the losses of all programs, {program: {variant: [those of each rank]}}."""

    @cache
    def of(ranks: int, backend: str) -> dict[str, dict[str, list[list[float]]]]:
        argv = ("-m", "tests.mpi_ops.programs.run", backend, *PROGRAMS[ranks])
        ended = mpiexec(ranks, *argv, timeout_s=200)
        assert ended.status == 0, ended.stderr[-3000:]
        return json.loads(ended.stdout)

    return of


@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    ("ranks", "program"), [(ranks, name) for ranks, names in PROGRAMS.items() for name in names]
)
def test_a_stock_program_runs_unchanged(printed, ranks, program):
    over_mpi, over_gloo = printed(ranks, "mpi4py"), printed(ranks, "gloo")
    assert over_mpi[program].keys() == over_gloo[program].keys()
    for variant, curves in over_mpi[program].items():
        narrow = "bf16" in variant
        for mine, its in zip(curves, over_gloo[program][variant], strict=True):
            assert mine == pytest.approx(its, rel=1e-6 if narrow else 1e-12), variant
        if variant != NO_PLAIN_FORM:
            [plain] = over_mpi["plain"]["plain"]
            assert mean(curves) == pytest.approx(plain, rel=1e-2 if narrow else 1e-9), variant


def mean(curves: list[list[float]]) -> list[float]:
    """Return the mean over the ranks that see a loss; they see equal shares of the tokens."""
    return [sum(step) / len(step) for step in zip(*filter(None, curves), strict=True)]
