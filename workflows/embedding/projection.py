"""The random matrix R that powers start from: a hash of (seed, node, column), so that any rank may make any rows."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.embedding import counter
from workflows.embedding.config import EmbeddingConfig

BATCH_WORDS = 1 << 16
"""Hashes made at once: a batch stays in a core's cache."""


def sparsity(config: EmbeddingConfig, n_nodes: int) -> float:
    """Return s: one entry in s is not zero."""
    s = config.projection.s
    return math.sqrt(n_nodes) if isinstance(s, str) else float(s)


def projection(
    config: EmbeddingConfig, n_nodes: int, nodes: range, columns: range, scale: NDArray[np.float64]
) -> Tensor:
    """Return some rows and columns of L R, (nodes, columns) in fp32; `scale` (nodes,) is the diagonal of L.

    E[R R^T] = I over `dim` columns (FastRP, section 3.2).
    """
    gaussian = config.projection.kind == "gaussian"
    made = torch.empty(len(nodes), len(columns))
    out = made.numpy()
    step = max(1, BATCH_WORDS // max(1, len(columns)))
    for at in range(0, len(nodes), step):
        batch = np.arange(nodes.start + at, nodes.start + min(at + step, len(nodes)))
        key = counter.keys(config.seed, batch)
        drawn = _normal(key, columns) if gaussian else _sign(key, columns, sparsity(config, n_nodes))
        s = 1.0 if gaussian else sparsity(config, n_nodes)
        factor = scale[at : at + len(batch)] * math.sqrt(s / config.dim)
        np.multiply(drawn, factor[:, None].astype(np.float32), out=out[at : at + len(batch)])
    return made


def _sign(key: counter.Words, columns: range, s: float) -> NDArray[np.float32]:
    """Return +1 and -1 with probability 1/2s each, else 0: two columns a hash, 32 bits for each."""
    first, last = columns.start // 2, -(-columns.stop // 2)
    word = counter.draws(key, first, last - first).view(np.int32)
    word = word[:, columns.start - 2 * first :][:, : len(columns)]
    tail = round(2**31 / s)
    up = (word >= 2**31 - tail).astype(np.float32)
    up -= word < -(2**31) + tail
    return up


def _normal(key: counter.Words, columns: range) -> NDArray[np.float32]:
    """Return normal numbers, one a hash and column (Box and Muller, of its two halves)."""
    word = counter.draws(key, columns.start, len(columns)).view(np.uint32).reshape(len(key), -1, 2)
    u = (word.astype(np.float64) + 0.5) / 2**32
    drawn: NDArray[np.float64] = np.sqrt(-2 * np.log(u[..., 0])) * np.cos(2 * math.pi * u[..., 1])
    return drawn.astype(np.float32)
