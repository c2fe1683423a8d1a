"""How large a graph is, before any rank starts: counted where the file is small, else by what the study states."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workflows.embedding import lsc, ogb
from workflows.embedding.config import GraphConfig, RmatConfig
from workflows.embedding.convert import CONVERTED
from workflows.embedding.errors import GraphError
from workflows.embedding.rmat import A, B, C
from workflows.embedding.text import Edges, read_text

COUNTED_BYTES = 1 << 28
"""Files up to this size are read by `plan`, once."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a graph."""

    nodes: int
    edges: int
    """As they stand in the file, or are drawn."""
    nnz: int
    """Entries of the adjacency matrix."""
    degrees: tuple[tuple[float, float], ...]
    """(columns, entries in each): nodes by how often they are named."""

    def halo(self, ranks: int) -> float:
        """Return the columns that a rank of so many names of others' nodes, if nodes lie as if by chance.

        A column of k entries has one in this rank's rows with probability 1 - (1 - 1/P)^k.
        """
        share = 1 / ranks
        named = (
            sum(count * -math.expm1(k * math.log1p(-share)) for count, k in self.degrees)
            if ranks > 1
            else 0.0
        )
        return named * (1 - share)


def survey(graph: GraphConfig) -> Survey:
    """Return what is known of a graph; a file is read when it is small, and only once a process.

    Raises:
        GraphError: a file that is not there, holds what is no edge, or is large and of unstated size.
    """
    if graph.rmat:
        return _rmat(graph.rmat)
    if graph.nodes and graph.edges:
        return _stated(graph, graph.nodes, graph.edges)
    try:
        if graph.kind == "ogb_lsc":
            nodes, edges = lsc.size(graph)
            if edges * 16 > COUNTED_BYTES:
                return _stated(graph, nodes, edges)
            return _counted(graph.model_copy(update={"nodes": nodes}), edges, 0)
        held = os.stat(ogb.edge_file(graph.path or "") if graph.kind == "ogb" else graph.path or "")
    except OSError as error:
        raise GraphError(f"graph.path: {graph.path}: {error.strerror}") from None
    if held.st_size > COUNTED_BYTES:
        raise GraphError(
            f"graph.path: {graph.path} is of {held.st_size:,} bytes, more than `plan` reads: state graph.nodes "
            "and graph.edges, which are checked when ranks read it"
        )
    return _counted(graph, held.st_size, held.st_mtime_ns)


def _stated(graph: GraphConfig, nodes: int, edges: int) -> Survey:
    """Return the size that is stated, of nodes that are all alike."""
    nnz = edges * (2 if graph.mirrored else 1)
    return Survey(nodes, edges, nnz, ((float(nodes), nnz / nodes),))


def _rmat(rmat: RmatConfig) -> Survey:
    """Return the expected size: cells of equal probability are counted together, by their quadrants' numbers.

    A cell off the diagonal gets p of each of m edges; it or its mirror is drawn at least once with 1 - (1 - 2p)^m.
    """
    d, m = 1 - A - B - C, rmat.edge_factor << rmat.scale
    nnz, degrees = 0.0, []
    for ones in range(rmat.scale + 1):  # bits of a node's number that lie in the lower half
        entries = 0.0
        for up in range(rmat.scale - ones + 1):  # of the others, those whose neighbour's bit is one
            for down in range(ones + 1):  # of the ones, those whose neighbour's bit is none
                p = A ** (rmat.scale - ones - up) * B**up * C**down * d ** (ones - down)
                if up or down:
                    cells = math.comb(rmat.scale - ones, up) * math.comb(ones, down)
                    entries += cells * -math.expm1(m * math.log1p(-2 * p))
        nodes = math.comb(rmat.scale, ones)
        nnz += nodes * entries
        degrees.append((float(nodes), entries))
    return Survey(1 << rmat.scale, m, round(nnz), tuple(degrees))


@lru_cache(maxsize=8)
def _counted(graph: GraphConfig, _size: int, _time_ns: int) -> Survey:
    """Count a file's nodes, edges and entries."""
    edges, nodes = _read(graph)
    source, target = (np.concatenate([getattr(e, end) for e in edges]) for end in ("source", "target"))
    if graph.kind == "text" and graph.ids == "string":
        names, ends = np.unique([source, target], return_inverse=True)
        source, target, nodes = *ends.reshape(2, -1), len(names)
    nodes = max(nodes, graph.nodes or 0, int(max(source.max(initial=-1), target.max(initial=-1))) + 1)
    loops = int(np.count_nonzero(source == target))
    if graph.mirrored:
        low, high = np.minimum(source, target), np.maximum(source, target)
        pairs = np.unique(low.astype(np.int64) * nodes + high)
        a, b = pairs // nodes, pairs % nodes
        kept = (a != b) | (graph.self_loops == "keep")
        named = np.bincount(np.concatenate([a[kept], b[kept & (a != b)]]), minlength=nodes)
    else:
        pairs = np.unique(source.astype(np.int64) * nodes + target)
        kept = (pairs // nodes != pairs % nodes) | (graph.self_loops == "keep")
        named = np.bincount(pairs[kept] % nodes if graph.direction != "in" else pairs[kept] // nodes)
    if not len(source) or (loops == len(source) and graph.self_loops == "drop"):
        raise GraphError(f"{graph.path}: holds no edge, a graph needs at least one")
    sizes, counts = np.unique(named, return_counts=True)
    return Survey(
        nodes,
        len(source),
        int(named.sum()),
        tuple(zip(counts.astype(float).tolist(), sizes.astype(float).tolist(), strict=True)),
    )


def _read(graph: GraphConfig) -> tuple[list[Edges], int]:
    """Return all edges of a file of any format, and how many nodes it says it has."""
    if graph.kind == "ogb":
        source, target, nodes = ogb.read_edges(graph.path or "")
        return [Edges(source, target)], nodes
    if graph.kind in CONVERTED:
        from workflows.embedding.convert import read_matrix

        _, matrix = read_matrix(graph.path or "")
        of: tuple[NDArray[np.int64], NDArray[np.int64]] = matrix.tocoo().coords
        return [Edges(of[0].astype(np.int64), of[1].astype(np.int64))], matrix.shape[0]
    from workflows.embedding import arrays

    readers = {"text": read_text, "hdf5": arrays.read_hdf5, "npy": arrays.read_npy, "ogb_lsc": lsc.read_lsc}
    found = list(readers[graph.kind](graph))
    if not found:
        raise GraphError(f"{Path(graph.path or '')}: holds no edge, a graph needs at least one")
    return found, 0
