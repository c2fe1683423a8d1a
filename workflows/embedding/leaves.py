"""The leaves of a recursive partition: who is in which, and their vectors by FastRP, each leaf on one rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor

from mpi_ops.partition import even
from mpi_ops.row_exchange import RowExchange, entries_of
from workflows.embedding.errors import GraphError
from workflows.embedding.graph import Graph, row_sums
from workflows.embedding.methods.fastrp import METHOD as FASTRP
from workflows.embedding.parts import BALANCE, label_propagation
from workflows.embedding.problem import Blocks, Problem
from workflows.embedding.projection import sparsity

Flags = NDArray[np.bool_]
Parts = NDArray[np.int32]


def cut(problem: Problem) -> Tensor:
    """Return the part of each own node in each level, (own rows, levels).

    Raises, on every rank the same:
        GraphError: some edges would be in no leaf, or in one that is too large.

    Cost: for each level, that of `parts.label_propagation` and a halo exchange of one column.
    """
    graph, wanted = problem.graph, problem.config.embedding.leaves
    found = np.zeros((len(graph.rows), wanted.levels), np.int32)
    left = np.ones(len(graph.columns), bool)
    for level in range(wanted.levels):
        total = problem.comm.allreduce(int(np.count_nonzero(left)))
        if total <= wanted.entries:  # one leaf takes them all
            return torch.from_numpy(found)
        indptr, parts = _indptr(graph, left), -(-round((1 + BALANCE) * total) // wanted.entries)
        places = problem.columns.places[left]
        found[:, level] = label_propagation(graph, problem.columns, indptr, places, parts, np.diff(indptr))
        inside = left & _alike(problem, found[:, level])
        _check_size(problem, found[:, level], np.diff(_indptr(graph, inside)), parts)
        left &= ~inside
    if total := problem.comm.allreduce(int(np.count_nonzero(left))):
        raise GraphError(
            f"embedding.leaves.levels={wanted.levels}: {total:,} entries are cut in each level, and in no leaf; "
            "take more levels, or more entries a leaf"
        )
    return torch.from_numpy(found)


def add(problem: Problem, parts: Parts, level: int, total: Blocks) -> None:
    """Add the vectors of a level's leaves to `total`, a node's by its share of weights in that leaf.

    Cost: a halo exchange of one column for each level up to this; each entry of the level travels once, and the
    vector of each of its nodes once.
    """
    inside = _inside(problem, parts, level)
    indptr, weights = _indptr(problem.graph, inside), problem.graph.weights[inside]
    columns = problem.graph.columns[inside]
    here = row_sums(indptr, weights)
    share = np.divide(here, problem.degrees, out=np.zeros_like(here), where=problem.degrees > 0)
    rows = np.flatnonzero(np.diff(indptr))
    part = parts[rows, level]
    ranks = problem.comm.size
    last = problem.comm.allreduce(int(part.max(initial=-1)), MPI.MAX)
    for first in range(0, last + 1, ranks):
        turn = (part >= first) & (part < first + ranks)
        moving = RowExchange(problem.comm, part[turn] - first)
        entries = entries_of(indptr, rows[turn])
        starts = np.concatenate([[0], np.cumsum(np.diff(indptr)[rows[turn]])])
        nodes, counts = moving.there(problem.graph.nodes[rows[turn]]), moving.there(np.diff(starts))
        named = moving.entries_there(starts, columns[entries])
        made = _vectors(problem, nodes, counts, named, moving.entries_there(starts, weights[entries]))
        scale = torch.from_numpy(share[rows[turn]]).float()[:, None]
        for into, block in zip(total, made, strict=True):
            into[rows[turn]] += torch.from_numpy(moving.back(block.numpy())) * scale


def _indptr(graph: Graph, kept: Flags) -> NDArray[np.int64]:
    """Return the rows in compressed form with only some of their entries."""
    found: NDArray[np.int64] = np.concatenate([[0], np.cumsum(kept)])[graph.indptr]
    return found


def _alike(problem: Problem, part: Parts) -> Flags:
    """Return which entries have both ends in one part. Cost: a halo exchange of one column."""
    there = problem.columns.known(part)[problem.columns.places]
    alike: Flags = there == np.repeat(part, np.diff(problem.graph.indptr))
    return alike


def _inside(problem: Problem, parts: Parts, level: int) -> Flags:
    """Return which entries a level's leaves have. Cost: a halo exchange of one column for each level up to this."""
    left = np.ones(len(problem.graph.columns), bool)
    for before in range(level):
        left &= ~_alike(problem, parts[:, before])
    return left & _alike(problem, parts[:, level])


def _check_size(problem: Problem, part: Parts, entries: NDArray[np.int64], parts: int) -> None:
    """Refuse a leaf that is too large, as one is with a node of more entries than a leaf may have."""
    here = np.bincount(part, entries, parts)
    sizes = np.empty_like(here)
    problem.comm.Allreduce(here, sizes)
    most = problem.config.embedding.leaves.entries
    if sizes.max() > most:
        raise GraphError(
            f"embedding.leaves.entries={most}: a leaf would have {int(sizes.max()):,}; take more entries a leaf"
        )


def _vectors(
    problem: Problem,
    nodes: NDArray[np.int64],
    counts: NDArray[np.int64],
    named: NDArray[Any],
    weights: NDArray[np.float32],
) -> Blocks:
    """Return the vectors of `nodes` in a leaf where each has `counts` entries, of `named` nodes; on this rank alone."""
    embedding = problem.config.embedding
    if not len(nodes):
        return [torch.empty(0, len(columns)) for columns in problem.widths(embedding.dim)]
    ids = np.union1d(nodes, named)
    own, entries = np.searchsorted(ids, nodes), np.zeros(len(ids), np.int64)
    entries[own] = counts
    indptr = np.concatenate([[0], np.cumsum(entries)])
    columns = np.searchsorted(ids, named).astype(np.int32)
    leaf = Graph(MPI.COMM_SELF, even(len(ids), 1), 0, indptr, columns, weights, ids=ids)
    s = sparsity(embedding, problem.graph.n_nodes)  # of the whole graph: all leaves take rows of one R
    same = embedding.model_copy(update={"projection": embedding.projection.model_copy(update={"s": s})})
    work = Problem(leaf, problem.config.model_copy(update={"embedding": same}))
    state = FASTRP.begin(work)
    for step in range(1, FASTRP.steps(embedding) + 1):
        FASTRP.advance(work, state, step)
    work.columns.free()
    return [block[torch.from_numpy(own)] for block in FASTRP.result(work, state)]
