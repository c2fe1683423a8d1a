"""The random matrix R that powers start from: a hash of (seed, node, column), so that any rank may make any rows."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.embedding import counter
from workflows.embedding.config import EmbeddingConfig
from workflows.embedding.errors import GraphError

FEATURE_ROWS = 1 << 10
"""Nodes whose features are multiplied at once."""
BATCH_WORDS = 1 << 16
"""Hashes made at once: a batch stays in a core's cache."""


def sparsity(config: EmbeddingConfig, n_nodes: int) -> float:
    """Return s: one entry in s is not zero."""
    s = config.projection.s
    return math.sqrt(n_nodes) if isinstance(s, str) else float(s)


def projection(
    config: EmbeddingConfig,
    n_nodes: int,
    nodes: NDArray[np.int64],
    columns: range,
    scale: NDArray[np.float64],
) -> Tensor:
    """Return some rows and columns of L R, (nodes, columns) in fp32; `scale` (nodes,) is the diagonal of L.

    `nodes` ascend. E[R R^T] = I over `dim` columns (FastRP, section 3.2). The last columns may start from features.

    Raises:
        GraphError: as `_featured`.
    """
    made = torch.empty(len(nodes), len(columns))
    if random := range(columns.start, min(columns.stop, config.dim - feature_columns(config))):
        made[:, : len(random)] = _random(config, n_nodes, nodes, random, scale)
    if len(random) < len(columns):
        of_features = range(columns.start + len(random), columns.stop)
        made[:, len(random) :] = _featured(config, n_nodes, nodes, of_features, scale)
    return made


def feature_columns(config: EmbeddingConfig) -> int:
    """Return how many of the last columns start from features."""
    return round(config.feature_ratio * config.dim)


def _featured(
    config: EmbeddingConfig,
    n_nodes: int,
    nodes: NDArray[np.int64],
    columns: range,
    scale: NDArray[np.float64],
) -> Tensor:
    """Return L X W of the nodes' features X and a random W, a sign matrix hashed like R.

    Whole batches of nodes are multiplied, counted from node 0, so that no rank's border shows in the last bit.

    Raises:
        GraphError: the file is not there, or holds no number for each node and feature.
    """
    try:
        held = np.load(config.features or "", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise GraphError(f"embedding.features: {config.features}: {error}") from None
    if held.ndim != 2 or len(held) != n_nodes or held.dtype.kind not in "fiu":
        shown = f"{held.dtype} {list(held.shape)}"
        raise GraphError(
            f"{config.features}: is {shown}; features are numbers of ({n_nodes} nodes, features)"
        )
    key = counter.keys(config.seed + 1, np.arange(held.shape[1]))
    W = _sign(key, columns, 3.0) * np.float32(math.sqrt(3.0 / config.dim))
    made = np.empty((len(nodes), len(columns)), np.float32)
    for first in np.unique(nodes // FEATURE_ROWS * FEATURE_ROWS).tolist():
        product = held[first : first + FEATURE_ROWS].astype(np.float32) @ W
        own = slice(*np.searchsorted(nodes, (first, first + FEATURE_ROWS)))
        made[own] = product[nodes[own] - first]
    if not np.isfinite(made).all():
        raise GraphError(f"{config.features}: holds numbers that are not finite, or too large for fp32")
    made *= scale[:, None].astype(np.float32)
    return torch.from_numpy(made)


def _random(
    config: EmbeddingConfig,
    n_nodes: int,
    nodes: NDArray[np.int64],
    columns: range,
    scale: NDArray[np.float64],
) -> Tensor:
    """Return some rows and columns of L R alone."""
    gaussian = config.projection.kind == "gaussian"
    made = torch.empty(len(nodes), len(columns))
    out = made.numpy()
    step = max(1, BATCH_WORDS // max(1, len(columns)))
    for at in range(0, len(nodes), step):
        batch = nodes[at : at + step]
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
    """Return normal numbers, one a hash and column (Box and Muller, of its two halves), by fp32 arithmetic."""
    halves = counter.draws(key, columns.start, len(columns)).view(np.uint32).reshape(len(key), -1, 2)
    u = halves.astype(np.float32)
    u *= np.float32(2.0**-32)
    drawn: NDArray[np.float32] = np.log(u[..., 0] + np.float32(2.0**-33))
    drawn *= np.float32(-2)
    np.sqrt(drawn, out=drawn)
    drawn *= np.cos(u[..., 1] * np.float32(2 * math.pi))
    return drawn
