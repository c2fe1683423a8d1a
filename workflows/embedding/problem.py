"""What a method works on: a spread graph, its degrees, and the products and sums that methods are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor

from mpi_ops.spmm import SpreadMatrix
from workflows.embedding.config import EmbedConfig
from workflows.embedding.graph import Graph
from workflows.embedding.projection import projection

ROWS = 1 << 14
"""Rows that are looked at at once, so that they stay in a core's cache."""
Blocks = list[Tensor]


@dataclass
class Problem:
    """One rank's side of an embedding."""

    graph: Graph
    config: EmbedConfig

    @property
    def comm(self) -> MPI.Intracomm:
        """All ranks."""
        return self.graph.comm

    @cached_property
    def degrees(self) -> NDArray[np.float64]:
        """The weights at each own node, (own rows,)."""
        return self.graph.degrees()

    @cached_property
    def propagator(self) -> SpreadMatrix:
        """What powers are taken of, A = D^-1 S or S itself. Cost: that of SpreadMatrix, when first asked for."""
        adjacency = self.config.embedding.input_matrix == "adjacency"
        return self.matrix(np.array(self.graph.weights) if adjacency else self.transition())

    def widths(self, columns: int) -> list[range]:
        """Return the blocks that so many columns are cut into."""
        width = min(self.config.execution.column_block, columns)
        return [range(at, min(at + width, columns)) for at in range(0, columns, width)]

    def matrix(self, values: NDArray[np.float32]) -> SpreadMatrix:
        """Return a matrix with the graph's entries in the place of its edges. Cost: that of SpreadMatrix."""
        execution, graph = self.config.execution, self.graph
        return SpreadMatrix(
            self.comm,
            graph.partition,
            graph.indptr,
            graph.columns,
            values,
            wire=execution.wire,
            overlap=execution.overlap,
        )

    def transition(self) -> NDArray[np.float32]:
        """Return the values of A = D^-1 S (FastRP, section 3.1)."""
        values = np.repeat(inverse(self.degrees).astype(np.float32), np.diff(self.graph.indptr))
        values *= self.graph.weights
        return values

    def zeros(self) -> Blocks:
        """Return zeros, (own rows, dim)."""
        widths = self.widths(self.config.embedding.dim)
        return [torch.zeros(len(self.graph.rows), len(columns)) for columns in widths]

    def add_rows(self, total: Blocks, blocks: Blocks, weight: float, unit: bool) -> None:
        """Add `weight` times each row to `total`, in place; with `unit`, of rows scaled to length 1; 0 stays 0."""
        for rows in row_chunks(blocks):
            factor = torch.full((rows.stop - rows.start,), weight, dtype=torch.float64)
            if unit:
                norms = row_norms(blocks, rows)
                factor = torch.where(norms > 0, weight / norms, 0.0)
            factor32 = factor.float()[:, None]
            for into, block in zip(total, blocks, strict=True):
                into[rows].addcmul_(block[rows], factor32)

    def projection(self, scale: NDArray[np.float64]) -> Blocks:
        """Return L R of the own nodes, L being the diagonal `scale`."""
        graph, embedding = self.graph, self.config.embedding
        return [
            projection(embedding, graph.n_nodes, graph.rows, columns, scale)
            for columns in self.widths(embedding.dim)
        ]


def inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / values, and 0 of 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)


def row_chunks(blocks: Blocks) -> Iterator[slice]:
    """Yield stretches of rows that fit a cache."""
    n_rows = len(blocks[0])
    return (slice(at, min(at + ROWS, n_rows)) for at in range(0, n_rows, ROWS))


def row_norms(blocks: Blocks, rows: slice) -> Tensor:
    """Return the length of each row over all blocks, fp64 (rows,)."""
    parts = [torch.linalg.vector_norm(block[rows], dim=1, dtype=torch.float64) for block in blocks]
    return torch.stack(parts).square_().sum(0).sqrt_() if len(parts) > 1 else parts[0]


def standardize(comm: MPI.Intracomm, blocks: Blocks, n_nodes: int) -> None:
    """Give each column mean 0 and deviation 1 over all nodes, in place; rows of zeros stay zero.

    Sums are of whole numbers, values times a power of two, so that they are the same for any number of ranks.

    Cost: for each block, an all-reduce of a number and two of its width.
    """
    zero = torch.ones(len(blocks[0]), dtype=torch.bool)
    for rows in row_chunks(blocks):
        zero[rows] = row_norms(blocks, rows) == 0
    for block in blocks:
        mean = _column_sums(comm, block, n_nodes, lambda x: x) / n_nodes
        square = _column_sums(comm, block, n_nodes, partial(_squares, mean)) / n_nodes
        factor = torch.where(square > 0, square.rsqrt(), 0.0)
        for rows in row_chunks([block]):
            block[rows] = ((block[rows].double() - mean) * factor).float()
        block[zero] = 0.0


def _squares(mean: Tensor, x: Tensor) -> Tensor:
    return (x - mean).square()


def _column_sums(comm: MPI.Intracomm, block: Tensor, n_nodes: int, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the sums over all nodes of `of(values)`, fp64 (columns,), exact up to 2^-62 of the largest possible."""
    largest = comm.allreduce(
        max((float(of(block[rows].double()).abs().max()) for rows in row_chunks([block])), default=0.0),
        MPI.MAX,
    )
    if not largest:
        return torch.zeros(block.shape[1], dtype=torch.float64)
    unit = 2.0 ** (61 - int(np.ceil(np.log2(largest))) - int(np.ceil(np.log2(n_nodes + 1))))
    here = torch.zeros(block.shape[1], dtype=torch.int64)
    for rows in row_chunks([block]):
        here += (of(block[rows].double()) * unit).round().to(torch.int64).sum(0)
    comm.Allreduce(MPI.IN_PLACE, here.numpy())
    return here.double() / unit
