"""A graph spread over ranks: each reads a part of the edges, and gets the rows of its nodes.

Rows are contiguous stretches of node ids with about equally many entries. Columns stand in the order of their ids in
each row, and entries that come several times are added up in an order of their own, so that nothing about a row
depends on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from launch.agree import everywhere
from mpi_ops.partition import RowPartition, balanced
from workflows.embedding import counter
from workflows.embedding.arrays import read_hdf5, read_npy
from workflows.embedding.config import GraphConfig, LinksConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.lsc import read_lsc
from workflows.embedding.rmat import read_rmat
from workflows.embedding.text import Edges, read_text
from workflows.embedding.words import numbered

BINS = 1 << 16
"""Stretches of ids among which ranks are balanced."""
CHUNK = 1 << 20
"""Entries that are looked at at once, where a copy of all would double the memory."""
SPARSEST = 64
"""Most ids an edge, beyond the first few: what is sparser is no numbering 0, 1, 2 ..."""
Read = Callable[[GraphConfig, int, int], Iterator[Edges]]
READERS: dict[str, Read] = {
    "text": read_text,
    "rmat": read_rmat,
    "hdf5": read_hdf5,
    "npy": read_npy,
    "ogb_lsc": read_lsc,
}


@dataclass(slots=True)
class Graph:
    """One rank's rows of the adjacency matrix S."""

    comm: MPI.Intracomm
    partition: RowPartition
    edges_read: int
    """As they stood in the file, over all ranks."""
    indptr: NDArray[np.int64]
    """(own rows + 1,)"""
    columns: NDArray[np.int32] | NDArray[np.int64]
    """Rows of the nodes that entries name, in the order of those nodes' ids in each row; (entries,)"""
    weights: NDArray[np.float32]
    """(entries,)"""
    held_out: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """Pairs (node, node) of edges kept out, (pairs, 2), each on the rank of its first node."""
    words: dict[int, bytes] = field(default_factory=dict)
    """Where ids are words: those of some nodes, on some rank."""
    ids: NDArray[np.int64] | None = None
    """Node of each own row, ascending, (own rows,), where rows do not stand in the order of ids."""

    @property
    def n_nodes(self) -> int:
        """Nodes of all ranks."""
        return self.partition.n_rows

    @property
    def rows(self) -> range:
        """The rows of this rank: of the nodes of the same numbers, unless `ids` says otherwise."""
        return self.partition.rows(self.comm.rank)

    @property
    def nodes(self) -> NDArray[np.int64]:
        """Ids of the nodes of the own rows, ascending, (own rows,)."""
        return np.arange(self.rows.start, self.rows.stop) if self.ids is None else self.ids

    @property
    def nnz(self) -> int:
        """Entries of all ranks. Cost: an all-reduce of one number."""
        total: int = self.comm.allreduce(len(self.columns))
        return total

    def degrees(self) -> NDArray[np.float64]:
        """Return the sum of each own row's weights, (own rows,)."""
        return row_sums(self.indptr, self.weights)

    def bare(self) -> Graph:
        """Return the same rows without their entries, which others may still hold."""
        nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
        return replace(self, indptr=np.zeros_like(self.indptr), columns=nothing[0], weights=nothing[1])


def row_sums(indptr: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sum of each row's weights, (rows,)."""
    found = np.empty(len(indptr) - 1)
    for rows, entries in row_chunks(indptr):
        counts = np.diff(indptr[rows.start : rows.stop + 1])
        row = np.repeat(np.arange(len(counts)), counts)
        found[rows] = np.bincount(row, weights[entries], len(counts))
    return found


def row_chunks(indptr: NDArray[np.int64], entries: int = CHUNK) -> Iterator[tuple[slice, slice]]:
    """Yield stretches of rows with about so many entries, and the entries of each: a copy of all costs too much."""
    cuts = np.searchsorted(indptr, np.arange(entries, int(indptr[-1]), entries))
    borders = np.unique([0, *cuts.tolist(), len(indptr) - 1])
    for a, b in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        yield slice(a, b), slice(int(indptr[a]), int(indptr[b]))


def load(comm: MPI.Intracomm, config: GraphConfig, links: LinksConfig | None = None) -> Graph:
    """Read the graph together, without the edges that `links` holds out.

    Raises, on every rank the same:
        GraphError: something in the file is no edge, or the whole is no graph; one sentence.
        LayoutError: there are more ranks than nodes.

    Cost: each edge travels once, 8 bytes a direction, 4 more for a weight; a histogram of 65,536 numbers is reduced.
    """
    parts = everywhere(comm, lambda: _read_part(config, comm.rank, comm.size))
    read = comm.allreduce(sum(map(len, parts)))
    words: dict[int, bytes] = {}
    if config.kind == "text" and config.ids == "string":
        parts, n_nodes, words = numbered(comm, parts)
    else:
        largest = max((int(max(e.source.max(), e.target.max())) for e in parts), default=-1)
        n_nodes = max(comm.allreduce(largest, MPI.MAX) + 1, _stated_nodes(config))
    _check(config, n_nodes, read)
    kept_out = [] if links is None else _hold_out(links, parts)
    partition = _partition(comm, config, n_nodes, parts)
    keys, weights = _exchanged(comm, config, partition, parts)
    n_rows = len(partition.rows(comm.rank))
    indptr, columns, summed = _compressed(config, n_rows, n_nodes, keys, weights)
    graph = Graph(comm, partition, read, indptr, columns, summed, words=words)
    if links is not None:
        graph.held_out = _own_pairs(graph, np.concatenate([np.empty((0, 2), np.int64), *kept_out]))
    return graph


def _hold_out(links: LinksConfig, parts: list[Edges]) -> list[NDArray[np.int64]]:
    """Take the chosen edges out of `parts` and return them as (smaller id, larger id)."""
    taken = []
    for i, edges in enumerate(parts):
        out = held_out(links, edges.source, edges.target)
        ends = np.stack([edges.source[out], edges.target[out]], 1).astype(np.int64)
        taken.append(np.sort(ends, axis=1))
        weight = None if edges.weight is None else edges.weight[~out]
        parts[i] = Edges(edges.source[~out], edges.target[~out], weight)
    return taken


def _own_pairs(graph: Graph, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs whose first node is this rank's, each once. Cost: an all-to-all of the pairs."""
    owner = graph.partition.owner(pairs[:, 0])
    sent = graph.comm.alltoall([pairs[owner == rank] for rank in range(graph.comm.size)])
    return np.unique(np.concatenate(sent), axis=0)


def held_out(
    links: LinksConfig, source: NDArray[np.integer], target: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Return which edges are held out: a hash of both ends decides, so that both directions and all ranks agree."""
    low = np.minimum(source, target).astype(np.uint64)
    high = np.maximum(source, target).astype(np.uint64)
    drawn = counter.mix(counter.keys(links.seed, low) ^ counter.mix(high * counter.GOLDEN))
    chosen: NDArray[np.bool_] = (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53 < links.fraction
    return chosen & (source != target)


def _stated_nodes(config: GraphConfig) -> int:
    return 1 << config.rmat.scale if config.rmat else config.nodes or 0


def _read_part(config: GraphConfig, part: int, parts: int) -> list[Edges]:
    """Return this rank's edges in as few bytes as their ids allow."""
    return [_compact(edges) for edges in READERS[config.kind](config, part, parts)]


def _compact(edges: Edges) -> Edges:
    if edges.source.dtype == np.uint64 or max(edges.source.max(), edges.target.max()) >= 2**31:
        return edges
    return Edges(edges.source.astype(np.int32), edges.target.astype(np.int32), edges.weight)


def _check(config: GraphConfig, n_nodes: int, read: int) -> None:
    """Refuse what is no graph, or not the one that the study speaks of."""
    source = config.path or "graph.rmat"
    if not read:
        raise GraphError(f"{source}: holds no edge, a graph needs at least one")
    if config.edges is not None and config.edges != read:
        raise GraphError(f"graph.edges={config.edges}, but {source} holds {read}")
    if config.nodes is None and not config.rmat and n_nodes > SPARSEST * read + BINS:
        raise GraphError(
            f"{source}: node ids go up to {n_nodes - 1} with {read} edges: they are no numbering 0, 1, 2 ...; "
            "take graph.ids: string, or state graph.nodes"
        )


def _directions(
    config: GraphConfig, edges: Edges
) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.float32] | None]]:
    """Yield (rows, columns, weights) of the entries that edges stand for."""
    source, target, weight = edges.source, edges.target, edges.weight
    if config.rmat or config.self_loops == "drop":
        kept = source != target
        source, target, weight = source[kept], target[kept], None if weight is None else weight[kept]
    if config.direction != "in":
        yield source, target, weight
    if config.direction == "in":
        yield target, source, weight
    if config.direction == "both":
        other = source != target  # a loop is one entry, not two
        yield target[other], source[other], None if weight is None else weight[other]


def _partition(comm: MPI.Intracomm, config: GraphConfig, n_nodes: int, parts: list[Edges]) -> RowPartition:
    """Return rows shared out by their entries, to the precision of a bin of ids."""
    bins = min(n_nodes, BINS)
    here, everywhere_ = np.zeros((2, bins))
    for edges in parts:
        for rows, _, _ in _directions(config, edges):
            here += np.bincount(rows.astype(np.int64) * bins // n_nodes, minlength=bins)
    comm.Allreduce(here, everywhere_)
    starts = -(-np.arange(bins + 1, dtype=np.int64) * n_nodes // bins)
    return balanced(everywhere_ + np.diff(starts), starts, comm.size)


def _exchanged(
    comm: MPI.Intracomm, config: GraphConfig, partition: RowPartition, parts: list[Edges]
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
    """Return the entries of this rank's rows as keys, row in this rank x nodes + column, and their weights.

    `parts` is used up: what has been sent is let go.
    """
    weighted = comm.allreduce(any(edges.weight is not None for edges in parts), MPI.LOR)
    counts = np.zeros(comm.size, np.int64)
    for edges in parts:
        for rows, _, _ in _directions(config, edges):
            counts += np.bincount(partition.owner(rows), minlength=comm.size)
    total = np.empty_like(counts)
    comm.Allreduce(counts, total)
    keys = np.empty(int(total[comm.rank]), np.int64)
    weights = np.empty(len(keys), np.float32) if weighted else None
    at = 0
    for _ in range(comm.allreduce(len(parts), MPI.MAX)):
        edges = parts.pop() if parts else Edges(*np.empty((2, 0), np.int32))
        entries = list(_directions(config, edges))
        rows = np.concatenate([rows for rows, _, _ in entries])
        columns = np.concatenate([columns for _, columns, _ in entries])
        owner = partition.owner(rows)
        order = np.argsort(owner, kind="stable")
        first = np.asarray(partition.starts)[owner]
        sent = ((rows - first) * partition.n_rows + columns)[order]
        send = np.bincount(owner, minlength=comm.size)
        receive = np.empty_like(send)
        comm.Alltoall(send, receive)
        end = at + int(receive.sum())
        comm.Alltoallv([sent, send], [keys[at:end], receive])
        if weights is not None:
            one = [np.ones(len(r), np.float32) if w is None else w for r, _, w in entries]
            comm.Alltoallv([np.concatenate(one)[order], send], [weights[at:end], receive])
        at = end
    return keys, weights


def _compressed(
    config: GraphConfig,
    n_rows: int,
    n_nodes: int,
    keys: NDArray[np.int64],
    weights: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
    """Return (indptr, columns, weights) of entries in any order; `keys` is sorted in place."""
    if weights is None:
        keys.sort()
    else:
        order = np.lexsort((weights, keys))  # by weight as well: a sum must not depend on who read what
        keys, weights = keys[order], weights[order]
    new = np.empty(len(keys), bool)
    new[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    distinct = int(np.count_nonzero(new))
    summed = _summed(config, new, weights, distinct)
    if distinct < len(keys):
        keys = keys[new]
    indptr = np.searchsorted(keys, np.arange(n_rows + 1, dtype=np.int64) * n_nodes)
    columns: NDArray[Any] = np.empty(len(keys), np.int32 if n_nodes <= 2**31 else np.int64)
    for at in range(0, len(keys), CHUNK):
        columns[at : at + CHUNK] = keys[at : at + CHUNK] % n_nodes
    return indptr, columns, summed


def _summed(
    config: GraphConfig, new: NDArray[np.bool_], weights: NDArray[np.float32] | None, distinct: int
) -> NDArray[np.float32]:
    """Return the weight of each entry, `new` saying where in the sorted ones it begins; one 1 may stand for all."""
    one = config.rmat is not None or config.duplicates == "one"
    if weights is None and (one or distinct == len(new)):
        return np.broadcast_to(np.float32(1), distinct)
    begins = np.flatnonzero(new)
    if weights is None:
        return np.diff(begins, append=len(new)).astype(np.float32)
    if not distinct:
        return weights
    return (np.maximum if one else np.add).reduceat(weights.astype(np.float64), begins).astype(np.float32)
