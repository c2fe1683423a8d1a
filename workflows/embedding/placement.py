"""Rows on the ranks of their neighbours, so that less travels, and the way back to the order of ids.

A row that moves keeps its entries in the order of their nodes' ids, and R is a hash of ids. So FastRP's vectors are the
same, bit by bit, wherever a row stands; what leaves a run stands in the order of ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_ops.columns import Columns
from mpi_ops.partition import RowPartition
from mpi_ops.row_exchange import RowExchange
from workflows.embedding import parts
from workflows.embedding.errors import GraphError
from workflows.embedding.graph import Graph
from workflows.embedding.problem import Blocks


class Placement:
    """A graph whose rows stand where `kind` says, and `home`, the one whose rows stand in the order of ids.

    Raises, on every rank the same:
        GraphError: a rank would be left without a row.

    Cost: that of the kind, see `parts`; a halo exchange of one column; each entry travels once.
    """

    def __init__(self, home: Graph, kind: str) -> None:
        """Move the rows, or leave them: then the graph is `home` itself."""
        self.home, self.graph = home, home
        self._exchange: RowExchange | None = None
        if kind == "rows" or home.comm.size == 1:
            return
        columns = Columns(home.comm, home.partition, home.columns)
        if kind == "metis":
            to = parts.metis(home, home.comm.size)
        else:
            weights = np.diff(home.indptr) + 1
            to = parts.label_propagation(home, columns, home.indptr, columns.places, home.comm.size, weights)
        self._exchange = RowExchange(home.comm, to)
        self.graph = _moved(home, kind, columns, self._exchange)
        columns.free()
        self.home = home.bare()

    def there(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows of home, (own rows, columns), where the graph has them. Cost: all of them travel."""
        return rows if self._exchange is None else self._exchange.there(rows)

    def back(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows that stand where the graph has them in the order of ids. Cost: all of them travel."""
        return rows if self._exchange is None else self._exchange.back(rows)

    def bring_back(self, blocks: Blocks) -> None:
        """Put blocks in the order of ids, one after the other, for memory's sake. Cost: all of them travel."""
        for i, block in enumerate(blocks):
            blocks[i] = torch.from_numpy(self.back(block.numpy()))


def _moved(home: Graph, kind: str, columns: Columns, exchange: RowExchange) -> Graph:
    """Return the graph with its rows where `exchange` takes them."""
    comm = home.comm
    lengths = comm.allgather(int(exchange.received.sum()))
    if not all(lengths):
        raise GraphError(
            f"graph.partition={kind} leaves rank {lengths.index(0)} of {comm.size} without a node; "
            "take fewer ranks, or rows"
        )
    partition = RowPartition((0, *np.cumsum(lengths).tolist()))
    arrived = np.arange(partition.rows(comm.rank).start, partition.rows(comm.rank).stop)
    row = columns.known(exchange.back(arrived))  # where each node now stands, as it is known at home
    indptr = np.concatenate([[0], np.cumsum(exchange.there(np.diff(home.indptr)))])
    moved: NDArray[Any] = exchange.entries_there(home.indptr, row.astype(home.columns.dtype)[columns.places])
    weights = home.weights
    if comm.allreduce(weights.strides != (0,), MPI.LOR):  # else one 1 stands for all
        weights = exchange.entries_there(home.indptr, weights)
    else:
        weights = np.broadcast_to(np.float32(1), len(moved))
    nodes = exchange.there(np.arange(home.rows.start, home.rows.stop))
    return Graph(comm, partition, home.edges_read, indptr, moved, weights, words=home.words, ids=nodes)
