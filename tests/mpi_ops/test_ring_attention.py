"""Ring attention is attention over the whole sequence, on 1, 2 and 4 ranks; the cases run on real ranks."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from mpi_ops.errors import LayoutError, TensorError
from mpi_ops.ring_attention import _check, zigzag


def cases() -> list[str]:
    """Return the names of the cases, read from the source: MPI stays with the ranks."""
    tree = ast.parse(Path(__file__).with_name("ring_attention_cases.py").read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("test_")]


@pytest.fixture(scope="module")
def faults(mpiexec):
    """Return `of(ranks)`: what went wrong in a world of that size, by case, then rank and group."""

    @cache
    def of(ranks: int) -> dict[str, dict[str, str]]:
        ended = mpiexec(ranks, "-m", "tests.mpi_ops.ring_attention_cases", timeout_s=100)
        assert ended.status == 0, ended.stderr
        return json.loads(ended.stdout)

    return of


@pytest.mark.parametrize("case", cases(), ids=lambda name: name.removeprefix("test_"))
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_on_ranks(faults, ranks, case):
    found = faults(ranks)[case]
    assert not found, "\n".join(f"{place}: {text}" for place, text in found.items())


def test_a_rank_holds_a_chunk_and_its_mirror_image():
    assert [zigzag(8, 2, rank).tolist() for rank in (0, 1)] == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert zigzag(6, 1, 0).tolist() == list(range(6))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_position_is_held_once(size):
    held = torch.cat([zigzag(48, size, rank) for rank in range(size)])
    assert held.sort().values.tolist() == list(range(48))


@pytest.mark.parametrize(
    ("length", "size", "rank", "sentence"),
    [
        (12, 4, 0, "a sequence of 12 positions over 4 ranks: a multiple of 8"),
        (7, 1, 0, "a sequence of 7 positions over 1 ranks: a multiple of 2"),
        (16, 2, 2, "rank 2 of 2: the ranks are 0 to size - 1"),
        (16, 2, -1, "rank -1 of 2"),
    ],
)
def test_a_sequence_that_cannot_be_cut_is_refused(length, size, rank, sentence):
    with pytest.raises(LayoutError, match=sentence):
        zigzag(length, size, rank)


def heads(count: int, length: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(2, count, length, 8, dtype=dtype)


@pytest.mark.parametrize(
    ("tensors", "error", "sentence"),
    [
        ((heads(6), heads(4), heads(4)), TensorError, "those of q a multiple of those of k"),
        ((heads(6), heads(2), heads(3)), TensorError, r"k and v are \(B, K, L, E\)"),
        ((heads(6), heads(2, 6), heads(2, 6)), TensorError, "alike but for the heads"),
        ((heads(6), heads(2, dtype=torch.float64), heads(2)), TensorError, "one dtype for all"),
        ((heads(6, 3), heads(2, 3), heads(2, 3)), LayoutError, "3 positions a rank: an even number"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(tensors, error, sentence):
    with pytest.raises(error, match=sentence):
        _check(*tensors, size=2)


def test_a_single_rank_may_hold_an_odd_number_of_positions():
    _check(heads(6, 3), heads(2, 3), heads(2, 3), size=1)
