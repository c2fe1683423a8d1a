"""Link prediction: edges that are held out of the graph, told from pairs that are none by the vectors' similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mpi_ops.halo import HaloPlan
from workflows.embedding import counter
from workflows.embedding.config import LinksConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.evaluators import beaten, hits
from workflows.embedding.graph import Graph
from workflows.embedding.problem import Blocks

BATCH = 1 << 16
"""Pairs that are scored at once."""
Pairs = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinkScores:
    """AUC, and for each K the share of held-out edges that score above the K-th best of the pairs that are none."""

    auc: float
    hits: dict[int, float]
    positives: int
    negatives: int


def score_links(graph: Graph, blocks: Blocks, config: LinksConfig) -> LinkScores:
    """Return the scores, the same on every rank.

    Raises, on every rank the same:
        GraphError: no edge was held out.

    Cost: two halo exchanges of vectors; the negatives' scores are gathered on every rank.
    """
    positives = graph.held_out
    total = graph.comm.allreduce(len(positives))
    if not total:
        raise GraphError(
            f"eval.links.fraction={config.fraction}: no edge was held out; take more, or a larger graph"
        )
    negatives = _negatives(graph, config)
    up, away = (similarities(graph, blocks, pairs, config.score) for pairs in (positives, negatives))
    down = np.concatenate(graph.comm.allgather(away))
    auc = graph.comm.allreduce(float(beaten(up, down).sum())) / (total * len(down))
    found = {k: graph.comm.allreduce(int(hits(k, up, down).sum())) / total for k in config.hits}
    return LinkScores(auc, found, total, len(down))


def _negatives(graph: Graph, config: LinksConfig) -> Pairs:
    """Return this rank's share of pairs that are no edges, held out or not: drawn alike on every number of ranks."""
    drawn = np.arange(config.negatives)
    ends = counter.draws(counter.keys(config.seed + 1, drawn), 0, 2) % np.uint64(graph.n_nodes)
    pairs = np.sort(ends.astype(np.int64), axis=1)  # as edges that are held out stand
    mine = pairs[(pairs[:, 0] >= graph.rows.start) & (pairs[:, 0] < graph.rows.stop)]
    held = set(map(tuple, graph.held_out.tolist()))
    kept = [
        i
        for i, (a, b) in enumerate(mine.tolist())
        if a != b and not _edge(graph, a, b) and (a, b) not in held
    ]
    return mine[kept]


def _edge(graph: Graph, node: int, other: int) -> bool:
    """Return whether a node of this rank has an edge to another."""
    row = node - graph.rows.start
    columns = graph.columns[graph.indptr[row] : graph.indptr[row + 1]]
    at = int(np.searchsorted(columns, other))
    return at < len(columns) and int(columns[at]) == other


def similarities(graph: Graph, blocks: Blocks, pairs: Pairs, kind: str) -> Floats:
    """Return the similarity of each pair, whose first node is this rank's. A node without a vector scores 0.

    Cost: a halo exchange of the vectors of second nodes.
    """
    rows = graph.rows
    outside = np.unique(pairs[(pairs[:, 1] < rows.start) | (pairs[:, 1] >= rows.stop), 1])
    plan = HaloPlan(graph.comm, graph.partition, outside)
    inside = (pairs[:, 1] >= rows.start) & (pairs[:, 1] < rows.stop)
    there = np.where(inside, pairs[:, 1] - rows.start, len(rows) + np.searchsorted(outside, pairs[:, 1]))
    product, one, other = np.zeros((3, len(pairs)))
    for block in blocks:
        halo = torch.empty(len(outside), block.shape[1])
        plan.exchange(block, halo)
        known = torch.cat([block, halo]).numpy()
        for at in range(0, len(pairs), BATCH):
            batch = slice(at, at + BATCH)
            a = known[pairs[batch, 0] - rows.start].astype(np.float64)
            b = known[there[batch]].astype(np.float64)
            product[batch] += (a * b).sum(1)
            one[batch] += (a * a).sum(1)
            other[batch] += (b * b).sum(1)
    plan.free()
    if kind == "dot":
        return product
    length = np.sqrt(one * other)
    return np.divide(product, length, out=np.zeros_like(product), where=length > 0)
