"""Any layout reads what any layout saved, bit by bit, and whatever goes wrong on one rank goes wrong on all alike."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from launch.checkpoint import whole
from launch.errors import CheckpointError
from launch.pieces import Piece, Stored, check_whole
from tests.launch.alone import load, save
from tests.launch.cuts import RANKS_PER_FILE, SAVED

WORLDS = (1, 2, 4)
CASES = "checkpoint_cases"


def case_names() -> list[str]:
    tree = ast.parse((Path(__file__).parent / f"{CASES}.py").read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("test_")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mpiexec) -> Path:
    """A directory with every cut, saved by each number of ranks."""
    directory = tmp_path_factory.mktemp("cuts")
    for ranks in WORLDS:
        ended = mpiexec(ranks, "-m", "tests.launch.cuts", "save", str(directory))
        assert ended.status == 0, ended.stderr
    return directory


@pytest.mark.parametrize("ranks", WORLDS)
def test_any_cut_reads_what_any_cut_on_any_number_of_ranks_saved(saved, mpiexec, ranks):
    assert len(list(saved.iterdir())) == len(WORLDS) * len(SAVED) * len(RANKS_PER_FILE)
    ended = mpiexec(ranks, "-m", "tests.launch.cuts", "load", str(saved))
    assert ended.status == 0, ended.stderr
    assert json.loads(ended.stdout) == []


@pytest.mark.parametrize("ranks", WORLDS)
def test_ranks_of_a_node_share_a_file_unless_they_are_told_otherwise(saved, ranks):
    for ranks_per_file, writers in ((None, [0]), (1, range(ranks)), (2, range(0, ranks, 2))):
        place = saved / f"rows-by_{ranks}-{ranks_per_file}" / "step-00000001"
        held = sorted(path.name for path in place.iterdir())
        assert held == [*(f"data-{rank:05d}.bin" for rank in writers), "index.json"]
        sizes = [(place / name).stat().st_size for name in held[:-1]]
        assert sum(sizes) == 7 * 10 * 4 + 8, "each element stands there once"


@pytest.fixture(scope="module")
def report(tmp_path_factory, mpiexec):
    """Return `of(ranks)`: what went wrong on that many ranks, by case, then rank."""

    @cache
    def of(ranks: int) -> dict[str, dict[str, str]]:
        directory = str(tmp_path_factory.mktemp(f"cases_{ranks}"))
        ended = mpiexec(ranks, "-m", f"tests.launch.{CASES}", directory, *case_names(), timeout_s=100)
        assert ended.status == 0, ended.stderr
        return json.loads(ended.stdout)

    return of


@pytest.mark.parametrize("case", case_names())
@pytest.mark.parametrize("ranks", [2, 4])
def test_together(report, ranks, case):
    faults = report(ranks).get(case)
    assert faults is not None, f"not reached, for {list(report(ranks))[-1]} failed before"
    assert not faults, "\n".join(f"rank {rank}: {text}" for rank, text in faults.items())


def test_a_saver_does_without_threads_where_mpi_does(tmp_path, mpiexec):
    case = "test_a_saver_saves_what_the_arrays_held_when_it_was_started"
    rc = ("-rc", "thread_level='funneled'")
    ended = mpiexec(2, *rc, "-m", f"tests.launch.{CASES}", str(tmp_path), case)
    assert json.loads(ended.stdout) == {case: {}}, ended.stderr


@pytest.mark.full
def test_communicators_are_given_back(tmp_path):
    for step in range(1100):  # MPI has room for about 2,000, and each save needs two
        save(tmp_path, step, {}, {}, keep=1)
    assert load(tmp_path).step == 1099


def stored(offset: tuple[int, ...], shape: tuple[int, ...], of: tuple[int, ...]) -> Stored:
    return Stored("x", "<f4", of, offset, shape, "")


@pytest.mark.parametrize("n_dims", [1, 2, 3])
def test_a_box_too_many_too_few_or_out_of_place_is_always_found(n_dims):
    draw = np.random.default_rng(n_dims)
    for _ in range(50):
        of = tuple(map(int, draw.integers(2, 5, n_dims)))
        boxes = [stored(at, (1,) * n_dims, of) for at in map(tuple, np.argwhere(np.ones(of)).tolist())]
        check_whole({"x": boxes})
        one, other = draw.choice(len(boxes), 2, replace=False)
        for wrong in (
            [*boxes, boxes[one]],
            [box for box in boxes if box is not boxes[one]],
            [box if box is not boxes[one] else boxes[other] for box in boxes],
        ):
            with pytest.raises(CheckpointError, match="array 'x' overlap or leave a gap"):
                check_whole({"x": wrong})


@pytest.mark.parametrize(("shape", "offset"), [((4,), (3,)), ((4,), (-1,)), ((4, 4), (0,)), ((1,), (0,))])
def test_a_piece_outside_its_array_is_refused(shape, offset):
    with pytest.raises(ValueError, match=r"array 'x': \[2\] at .* is no box of one of"):
        Piece("x", np.zeros(2), shape, offset)


def test_a_scalar_saved_twice_is_refused(tmp_path):
    of = [stored((), (), ()), stored((), (), ())]
    check_whole({"x": of[:1]})
    with pytest.raises(CheckpointError, match=r"2 elements for the 1 places of float32\[\]"):
        check_whole({"x": of})
    assert whole("x", np.array(1)).offset == ()
