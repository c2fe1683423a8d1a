"""A rank begins with its part of what one process draws, and never holds more than that part."""

from __future__ import annotations

import hashlib

import pytest
import torch

from tests.cases_on_ranks import names
from workflows.llm import draw as module
from workflows.llm.config import ModelConfig
from workflows.llm.draw import draw
from workflows.llm.model import Transformer

CASES = "tests.workflows.llm.draw_cases"


@pytest.mark.parametrize("case", names(CASES), ids=lambda name: name.removeprefix("test_"))
def test_a_rank_never_holds_more_than_its_part(faults_on_ranks, case):
    reached = faults_on_ranks(CASES, 4)
    assert case in reached, f"not reached, for {list(reached)[-1]} failed before"
    assert not reached[case], "\n".join(f"rank {rank}: {text}" for rank, text in reached[case].items())


def drawn(name: str, shape: tuple[int, ...], offset: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    part = torch.full(size, torch.nan, dtype=torch.float64)
    draw(part, name, 3, shape, offset)
    return part


@pytest.mark.parametrize("shape", [(70, 24), (129, 16), (7, 40), (64, 33)], ids=str)
def test_a_matrix_drawn_in_stretches_has_the_bits_of_one_drawn_whole(monkeypatch, shape):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 16 * 24)
    seed = int.from_bytes(hashlib.sha256(b"3 head.weight").digest()[:8])
    want = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = drawn("head.weight", shape, (0, 0), shape)
    assert torch.equal(got, want / shape[1] ** 0.5)


@pytest.mark.parametrize("rows", [(0, 70), (0, 1), (31, 33), (48, 70), (69, 70), (70, 70)], ids=str)
@pytest.mark.parametrize("columns", [(0, 24), (5, 6), (12, 24)], ids=str)
def test_a_part_has_the_bits_that_it_has_in_the_whole(monkeypatch, rows, columns):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 16 * 24)
    whole = drawn("head.weight", (70, 24), (0, 0), (70, 24))
    offset, size = (rows[0], columns[0]), (rows[1] - rows[0], columns[1] - columns[0])
    assert torch.equal(drawn("head.weight", (70, 24), offset, size), whole[slice(*rows), slice(*columns)])


def test_a_part_of_the_experts_and_of_a_norm_is_that_of_all():
    experts = drawn("blocks.0.ffn.experts.up", (4, 6, 16), (0, 0, 0), (4, 6, 16))
    assert torch.equal(drawn("blocks.0.ffn.experts.up", (4, 6, 16), (2, 0, 0), (2, 6, 16)), experts[2:])
    assert drawn("norm.weight", (16,), (12,), (4,)).tolist() == [0.25] * 4


def test_without_a_seed_weights_have_no_memory_and_all_else_is_there():
    model = Transformer(ModelConfig(width=32, arch="gpt", experts=0), None, torch.float64)
    assert all(weight.is_meta for weight in model.parameters())
    assert not any(table.is_meta for table in model.buffers())
    assert model.head.weight is model.embedding.weight
    experts = Transformer(ModelConfig(width=32, experts=4), None)
    assert not any(table.is_meta for table in experts.buffers())
