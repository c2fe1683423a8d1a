"""Parts of a graph with about equally many entries, whose nodes have most of their neighbours beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from launch.agree import on_root
from mpi_ops.columns import Columns
from workflows.embedding import counter
from workflows.embedding.graph import Graph, row_chunks

SWEEPS = 20
BALANCE = 0.05
"""How much heavier than the mean a part may become."""
PENALTY = 0.5
"""What a full part counts against the share of a node's neighbours."""
SEED = 7
"""Of the draws that decide who moves first, and of METIS."""
Parts = NDArray[np.int64]
Floats = NDArray[np.float64]


def label_propagation(
    graph: Graph,
    columns: Columns,
    indptr: NDArray[np.int64],
    places: NDArray[np.int32],
    parts: int,
    weights: NDArray[np.int64],
) -> Parts:
    """Return the part of each own row, (own rows,): the same for any number of ranks.

    Nodes start in stretches of ids of equal weight. In each sweep a node wants the part that has the largest share of
    its neighbours less a penalty for fullness, and moves there with such a probability that the part does not
    overflow (after Martella et al., Spinner, ICDE 2017). `places` and `indptr` may be of some of the graph's entries.

    Cost: a sweep is a halo exchange of one column and two all-reduces of `parts` numbers.
    """
    comm = graph.comm
    total = int(comm.allreduce(int(weights.sum())))
    earlier = comm.exscan(int(weights.sum())) or 0
    stretch = (earlier + np.cumsum(weights) - weights) * parts // max(1, total)
    label = np.minimum(stretch, parts - 1)  # the last nodes may weigh nothing
    capacity = (1 + BALANCE) * max(1, total) / parts
    key = counter.keys(SEED, graph.nodes)
    for sweep in range(SWEEPS):
        load = _summed(comm, label, weights, parts)
        wanted = _wanted(
            indptr, columns.known(label.astype(np.int32))[places], label, PENALTY * load / capacity
        )
        asks = wanted != label
        demand = _summed(comm, wanted[asks], weights[asks], parts)
        let_in = np.clip(capacity - load, 0, None) / np.maximum(demand, 1)
        drawn = (counter.draws(key, sweep, 1)[:, 0] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        label = np.where(asks & (drawn < let_in[wanted]), wanted, label)
    return label


def _summed(comm: MPI.Intracomm, label: Parts, weights: NDArray[np.int64], parts: int) -> Floats:
    """Return the weight of each part. Cost: an all-reduce."""
    here = np.bincount(label, weights, parts).astype(np.float64)
    total = np.empty_like(here)
    comm.Allreduce(here, total)  # of whole numbers, so in any order
    return total


def _wanted(indptr: NDArray[np.int64], named: NDArray[np.int32], label: Parts, penalty: Floats) -> Parts:
    """Return the part that each own row would rather be in, its own unless another is better."""
    wanted, parts = label.copy(), len(penalty)
    for rows, entries in row_chunks(indptr):
        counts = np.diff(indptr[rows.start : rows.stop + 1])
        row = np.repeat(np.arange(len(counts)), counts)
        pairs, times = np.unique(row * parts + named[entries], return_counts=True)
        row, part = pairs // parts, pairs % parts
        score = times / counts[row] - penalty[part]
        stay = -penalty[label[rows]]
        own = part == label[rows][row]
        stay[row[own]] = score[own]
        order = np.lexsort((-part, score, row))
        best = order[np.flatnonzero(np.diff(row, append=-1))]  # the last of each row
        better = best[score[best] > stay[row[best]]]
        wanted[rows.start + row[better]] = part[better]
    return wanted


def metis(graph: Graph, parts: int) -> Parts:
    """Return the part of each own row by METIS, which works on rank 0 alone and needs pymetis.

    Cost: all columns are gathered on rank 0, and the parts sent back.
    """
    counts, columns = np.diff(graph.indptr), graph.columns
    every = graph.comm.gather((counts, columns))
    found = on_root(graph.comm, lambda: _metis(every or [], parts))
    return found[graph.rows.start : graph.rows.stop]


def _metis(rows: list[tuple[NDArray[np.int64], NDArray[Any]]], parts: int) -> Parts:
    import pymetis

    counts, columns = (np.concatenate(each) for each in zip(*rows, strict=True))
    n = len(counts)
    row = np.repeat(np.arange(n), counts)
    other = row != columns
    ends = np.stack([row[other], columns[other].astype(np.int64)])
    # METIS takes both directions.
    pairs = np.unique(np.concatenate([ends[0] * n + ends[1], ends[1] * n + ends[0]]))
    starts = np.searchsorted(pairs, np.arange(n + 1) * n)
    adjacency = pymetis.CSRAdjacency(starts, pairs % n)
    options = pymetis.Options(seed=SEED, ufactor=round(1000 * BALANCE))
    _, part = pymetis.part_graph(parts, adjacency, vweights=counts + 1, recursive=False, options=options)
    return np.asarray(part, np.int64)
