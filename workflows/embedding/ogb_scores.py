"""Vectors held against a task of the Open Graph Benchmark, on its own split and by its own score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from workflows.embedding import evaluators
from workflows.embedding.config import OgbConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.evaluation import likelihood, of_nodes
from workflows.embedding.graph import Graph
from workflows.embedding.links import similarities
from workflows.embedding.problem import Blocks

Vectors = NDArray[np.float32]


def score_task(
    graph: Graph, blocks: Blocks, wanted: OgbConfig, task: Path
) -> Iterator[tuple[str, float, int]]:
    """Yield (split, score, how many were scored) of validation and test, the same on every rank.

    Raises, on every rank the same:
        GraphError: nothing can be scored.

    Cost: of nodes, their vectors are gathered on every rank; of links, two halo exchanges of vectors a split, and
    the scores of pairs that are no edges on every rank.
    """
    with h5py.File(task, "r") as file:
        parts = {name: {key: part[key][:] for key in part} for name, part in file.items()}
    if wanted.metric in ("hits", "mrr"):
        of_links = _hits if wanted.metric == "hits" else _mrr
        for name, part in parts.items():
            yield name, *of_links(graph, blocks, wanted, part)
        return
    every = np.unique(np.concatenate([part["nodes"] for part in parts.values()]))
    vectors = of_nodes(graph, blocks, every, standard=True)
    train = parts.pop("train")
    known = vectors[np.searchsorted(every, train["nodes"])]
    of_labels = _accuracy if wanted.metric == "accuracy" else _rocauc
    for name, part in parts.items():
        if not np.isnan(part["labels"]).all():
            asked = vectors[np.searchsorted(every, part["nodes"])]
            yield name, of_labels(graph, wanted, known, train["labels"], asked, part["labels"]), len(asked)


def _accuracy(
    graph: Graph, wanted: OgbConfig, known: Vectors, labels: Vectors, asked: Vectors, truth: Vectors
) -> float:
    """Return the accuracy of the likeliest class; every rank fits every P-th one."""
    if labels.shape[1] != 1:
        raise GraphError(
            f"eval.ogb.metric=accuracy: labels have {labels.shape[1]} columns, it takes one; or rocauc"
        )
    told = ~np.isnan(labels[:, 0])
    known, labels = known[told], labels[told]
    classes = np.unique(labels)
    mine = classes[graph.comm.rank :: graph.comm.size]
    likely = np.empty((len(classes), len(asked)))
    found = [likelihood(known, labels[:, 0] == each, asked, wanted.C) for each in mine]
    for rank, rows in enumerate(graph.comm.allgather(np.reshape(found, (len(mine), len(asked))))):
        likely[rank :: graph.comm.size] = rows
    return evaluators.accuracy(truth, classes[likely.argmax(0)][:, None])


def _rocauc(
    graph: Graph, wanted: OgbConfig, known: Vectors, labels: Vectors, asked: Vectors, truth: Vectors
) -> float:
    """Return the mean over tasks; every rank fits every P-th one, on the nodes whose label is known."""
    mine = range(graph.comm.rank, labels.shape[1], graph.comm.size)
    areas: list[float] = []
    for task in mine:
        told = ~np.isnan(labels[:, task])
        score = likelihood(known[told], labels[told, task] == 1, asked, wanted.C)
        areas += evaluators.rocauc(truth[:, [task]], score[:, None])
    every = [area for each in graph.comm.allgather(areas) for area in each]
    if not every:
        raise GraphError("eval.ogb.metric=rocauc: no task has labels of both kinds")
    return float(np.mean(every))


def _hits(
    graph: Graph, blocks: Blocks, wanted: OgbConfig, part: dict[str, NDArray[np.int64]]
) -> tuple[float, int]:
    up, down = (_own(graph, part[key]) for key in ("edge", "edge_neg"))
    good, bad = (similarities(graph, blocks, pairs, wanted.score) for pairs in (up, down))
    every = np.concatenate(graph.comm.allgather(bad))
    found = graph.comm.allreduce(int(evaluators.hits(wanted.k, good, every).sum()))
    return found / len(part["edge"]), len(part["edge"])


def _mrr(
    graph: Graph, blocks: Blocks, wanted: OgbConfig, part: dict[str, NDArray[np.int64]]
) -> tuple[float, int]:
    source = part["source_node"]
    mine = (source >= graph.rows.start) & (source < graph.rows.stop)
    others = part["target_node_neg"][mine]
    up = similarities(graph, blocks, np.stack([source[mine], part["target_node"][mine]], 1), wanted.score)
    down_pairs = np.stack([np.repeat(source[mine], others.shape[1]), others.ravel()], 1)
    down = similarities(graph, blocks, down_pairs, wanted.score).reshape(others.shape)
    found = graph.comm.allreduce(float(evaluators.reciprocal_ranks(up, down).sum()))
    return found / len(source), len(source)


def _own(graph: Graph, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs whose first node is this rank's."""
    mine: NDArray[np.int64] = pairs[(pairs[:, 0] >= graph.rows.start) & (pairs[:, 0] < graph.rows.stop)]
    return mine
