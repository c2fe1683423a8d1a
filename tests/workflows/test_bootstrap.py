"""Resamples spread over real MPI ranks: the same bits as on one."""

from __future__ import annotations

import json

import pytest

from tests.analysis.studies import study

IN_ORDER = """
from mpi4py import MPI
from analysis.fitting import blocks
from workflows.bootstrap import serve, spread

def block(numbers):
    return MPI.COMM_WORLD.rank, numbers

if MPI.COMM_WORLD.rank:
    serve(MPI.COMM_WORLD)
else:
    for count in (0, 1, 250, 1700):
        done = spread(MPI.COMM_WORLD, block, blocks(count))
        assert [numbers for _, numbers in done] == blocks(count)
        print(count, [rank for rank, _ in done], flush=True)
    MPI.COMM_WORLD.bcast(None)
"""


@pytest.fixture
def table(tmp_path):
    points = study(3)
    path = tmp_path / "table.csv"
    rows = zip(points.N.tolist(), points.D.tolist(), points.L.tolist(), strict=True)
    path.write_text("N,D,L\n" + "\n".join(f"{N!r},{D!r},{L!r}" for N, D, L in rows))
    return path


def test_every_rank_takes_its_share_and_nothing_is_out_of_order(mpiexec):
    done = mpiexec(3, "-c", IN_ORDER)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "0 []",
        "1 [0]",
        "250 [0]",
        "1700 [0, 1, 2, 0, 1, 2, 0]",
    ]


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.full)])
def test_two_ranks_give_the_bits_of_one(table, isoflop, count):
    args = ("fit", "--data", table, "--columns", "N=N,D=D,L=L", "--bootstrap", count, "--seed", 4, "--json")
    one, two = isoflop(*args), isoflop(*args, "--ranks", 2)
    assert (one.status, two.status, two.stderr) == (0, 0, "")
    assert json.loads(one.stdout)["bootstrap"] == count
    assert one.stdout == two.stdout


def test_a_mistake_is_told_once_and_ends_all_ranks(table, isoflop):
    done = isoflop("fit", "--data", table, "--columns", "N=N,D=D,L=loss", "--ranks", 2)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith(f"isoflop: {table}: no column 'loss'")
    assert done.stderr.count("\n") == 1
