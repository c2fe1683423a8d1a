"""Node classification by the protocol of DeepWalk, shared by ranks class by class.

A share of the labelled nodes trains one logistic regression a class (liblinear, whose intercept is penalised, as in
the published figures); each other node is given as many labels as it has, those of the largest probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from workflows.embedding.config import ClassificationConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.graph import Graph
from workflows.embedding.labels import Labels
from workflows.embedding.problem import Blocks, standardize

Floats = NDArray[np.float64]
Marks = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Score:
    """F1 at one share of training labels, mean and deviation over the shuffles."""

    percent: float
    trained: int
    micro: float
    macro: float
    micro_deviation: float
    macro_deviation: float


def classify(graph: Graph, blocks: Blocks, labels: Labels, config: ClassificationConfig) -> Iterator[Score]:
    """Yield the scores of each share of training labels, the same on every rank.

    Raises:
        GraphError: fewer labelled nodes than can be shared out.

    Cost: the vectors of labelled nodes are gathered on every rank; an all-gather of probabilities a shuffle.
    """
    nodes, marks = labels.nodes, labels.marks
    if len(nodes) < 2:
        raise GraphError(f"{config.labels}: {len(nodes)} labelled nodes; some must train and others test")
    vectors = of_nodes(graph, blocks, nodes, config.standardize)
    for percent in config.percents:
        trained = int(len(nodes) * percent / 100)
        if not 0 < trained < len(nodes):
            raise GraphError(f"eval.classification.percents: {percent} % of {len(nodes)} nodes are {trained}")
        found = []
        for shuffle in range(config.shuffles):
            order = np.random.default_rng([config.seed, shuffle]).permutation(len(nodes))
            train, test = order[:trained], order[trained:]
            found.append(_f1(marks[test], _predicted(graph.comm, vectors, marks, train, test, config.C)))
        micro, macro = np.array(found).T
        yield Score(percent, trained, micro.mean(), macro.mean(), micro.std(), macro.std())


def of_nodes(graph: Graph, blocks: Blocks, nodes: NDArray[np.int64], standard: bool) -> NDArray[np.float32]:
    """Return the vectors of `nodes`, which ascend, on every rank; with `standard`, each column of deviation 1.

    Cost: the vectors are gathered on every rank.
    """
    if standard:
        blocks = [block.clone() for block in blocks]
        standardize(graph.comm, blocks, graph.n_nodes)
    mine = nodes[(nodes >= graph.rows.start) & (nodes < graph.rows.stop)] - graph.rows.start
    here = np.concatenate([block.numpy()[mine] for block in blocks], axis=1)
    everywhere = np.empty((len(nodes), here.shape[1]), np.float32)
    counts = graph.comm.allgather(here.size)
    graph.comm.Allgatherv(np.ascontiguousarray(here), [everywhere, counts])
    return everywhere


def _predicted(
    comm: MPI.Intracomm,
    vectors: NDArray[np.float32],
    marks: Marks,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    C: float,
) -> Marks:
    """Return for each test node as many labels as it has, the likeliest; every rank fits every P-th class."""
    classes = marks.shape[1]
    mine = range(comm.rank, classes, comm.size)
    likely = np.empty((len(mine), len(test)))
    for row, label in enumerate(mine):
        likely[row] = likelihood(vectors[train], marks[train, label], vectors[test], C)
    gathered = np.empty((classes, len(test)))
    for rank, rows in enumerate(comm.allgather(likely)):
        gathered[rank :: comm.size] = rows
    order = np.argsort(np.argsort(-gathered, axis=0, kind="stable"), axis=0)
    chosen: Marks = (order < marks[test].sum(1)).T
    return chosen


def likelihood(vectors: NDArray[np.float32], known: Marks, asked: NDArray[np.float32], C: float) -> Floats:
    """Return how likely each of `asked` is marked, (asked,), by a regression on `vectors` and their marks, `known`."""
    from sklearn.linear_model import LogisticRegression

    if known.all() or not known.any():
        return np.full(len(asked), float(known.any()))
    model = LogisticRegression(C=C, solver="liblinear", random_state=0).fit(vectors, known)
    likely: Floats = model.predict_proba(asked)[:, 1]
    return likely


def _f1(truth: Marks, predicted: Marks) -> tuple[float, float]:
    """Return micro and macro F1; a class that neither has nor gets nodes counts 0, as in the published figures."""
    hit = (truth & predicted).sum(0)
    either = truth.sum(0) + predicted.sum(0)
    each = np.divide(2.0 * hit, either, out=np.zeros(len(hit)), where=either > 0)
    return float(2 * hit.sum() / either.sum()), float(each.mean())
