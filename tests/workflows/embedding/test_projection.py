"""The random matrix: its entries as the paper has them, and any part of it the same wherever it is made."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workflows.embedding.config import EmbeddingConfig
from workflows.embedding.projection import projection


def made(nodes: range, columns: range, n: int = 3000, **keys) -> np.ndarray:
    config = EmbeddingConfig.model_validate(keys)
    return projection(config, n, np.arange(nodes.start, nodes.stop), columns, np.ones(len(nodes))).numpy()


@pytest.mark.parametrize("s", [1.0, 3.0, "sqrt_n"])
def test_entries_are_zero_or_of_one_size_and_as_many_as_they_should_be(s):
    n, dim = 3000, 64
    R = made(range(n), range(dim), dim=dim, projection={"s": s})
    sparsity = math.sqrt(n) if s == "sqrt_n" else s
    np.testing.assert_allclose(np.unique(np.abs(R[R != 0])), math.sqrt(sparsity / dim), rtol=1e-6)
    for share, count in ((1 / sparsity, (R != 0).sum()), (1 / (2 * sparsity), (R > 0).sum())):
        sigma = math.sqrt(R.size * share * (1 - share))
        assert abs(count - R.size * share) <= 4 * sigma
    rows = R.astype(float) @ R.T
    assert abs(rows[~np.eye(n, dtype=bool)].mean()) < 1e-3  # E[R R^T] = I
    assert rows.diagonal().mean() == pytest.approx(1, abs=0.05)


def test_normal_entries_have_their_moments():
    R = made(range(3000), range(64), dim=64, projection={"kind": "gaussian"}) * 8
    assert R.mean() == pytest.approx(0, abs=0.01)
    assert R.std() == pytest.approx(1, abs=0.01)
    assert (R**4).mean() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("kind", ["very_sparse", "gaussian", "features"])
def test_any_part_is_the_same_wherever_it_is_made(tmp_path, kind):
    keys = {"dim": 16, "projection": {"kind": "gaussian" if kind == "gaussian" else "very_sparse"}}
    if kind == "features":
        np.save(tmp_path / "f.npy", np.random.default_rng(0).standard_normal((3000, 300)).astype(np.float32))
        keys |= {"features": str(tmp_path / "f.npy"), "feature_ratio": 0.5}
    whole = made(range(3000), range(16), **keys)
    assert len(np.unique(whole, axis=0)) > 2900
    for nodes in (range(1), range(1, 2), range(3, 1027), range(100, 131), range(2999, 3000), range(7, 1500)):
        assert made(nodes, range(16), **keys).tobytes() == whole[nodes.start : nodes.stop].tobytes(), nodes
    if kind != "features":  # blocks of columns are multiplied apart, and no rank cuts them
        for columns in (range(3), range(3, 4), range(5, 16)):
            part = whole[:, columns.start : columns.stop]
            assert made(range(3000), columns, **keys).tobytes() == part.tobytes(), columns
    other = made(range(3000), range(16), **keys, seed=1)
    assert (other != whole).mean() > 0.3
