"""Graph500's R-MAT graphs, any part of one on any rank: an edge is a hash of its number, so P ranks make one graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workflows.embedding import counter
from workflows.embedding.config import GraphConfig, RmatConfig
from workflows.embedding.text import Edges

A, B, C = 0.57, 0.19, 0.19
BATCH = 1 << 17
"""Edges made at once: draws of one batch stay in a core's cache."""


def read_rmat(graph: GraphConfig, part: int = 0, parts: int = 1) -> Iterator[Edges]:
    """Yield the edges of one of `parts` parts, each drawn once, with repetitions and loops as they come."""
    assert graph.rmat is not None  # noqa: S101  (the caller looked at graph.kind)
    total = graph.rmat.edge_factor << graph.rmat.scale
    first, last = total * part // parts, total * (part + 1) // parts
    for at in range(first, last, BATCH):
        yield _edges(graph.rmat, np.arange(at, min(at + BATCH, last)))


def _edges(rmat: RmatConfig, numbers: NDArray[np.int64]) -> Edges:
    """Return the edges of these numbers: at each level a draw of 16 bits picks a quadrant."""
    key = counter.keys(rmat.seed, numbers)
    quarter = counter.draws(key, 0, -(-rmat.scale // 4)).view(np.uint16)  # (edges, levels rounded up to 4)
    a, ab, abc = (np.uint16(round(p * 65536)) for p in (A, A + B, A + B + C))
    source, target = np.zeros((2, len(numbers)), np.uint64)
    one = np.uint64(1)
    for level in range(rmat.scale):
        draw = quarter[:, level]
        source <<= one
        target <<= one
        source |= draw >= ab
        target |= ((draw >= a) & (draw < ab)) | (draw >= abc)
    return Edges(_shuffled(rmat, source), _shuffled(rmat, target))


def _shuffled(rmat: RmatConfig, nodes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return other names for the nodes, a bijection of 0 ... 2^scale - 1 that hides which are the hubs."""
    mask, half = np.uint64((1 << rmat.scale) - 1), np.uint64(-(-rmat.scale // 2))
    factors = counter.keys(rmat.seed, np.arange(-3, 0)) | np.uint64(1)
    for factor in factors:
        nodes = (nodes * factor) & mask  # odd factors and shifted sums can be undone modulo 2^scale
        nodes ^= nodes >> half
    return nodes.astype(np.int64)
