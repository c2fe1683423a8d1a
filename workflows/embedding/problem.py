"""What a method works on: a spread graph, its degrees, and the products and sums that methods are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor

from mpi_ops.columns import Columns
from mpi_ops.spmm import SpreadMatrix
from workflows.embedding.config import EmbedConfig, ProjectionConfig
from workflows.embedding.graph import Graph
from workflows.embedding.projection import projection

ROWS = 1 << 12
"""Rows that are looked at at once, so that they stay in a core's cache."""
Blocks = list[Tensor]


@dataclass
class Problem:
    """One rank's side of an embedding."""

    graph: Graph
    config: EmbedConfig
    kept: dict[str, SpreadMatrix] = field(default_factory=dict)
    """Matrices that a method makes for several steps."""

    @property
    def comm(self) -> MPI.Intracomm:
        """All ranks."""
        return self.graph.comm

    @cached_property
    def degrees(self) -> NDArray[np.float64]:
        """The weights at each own node, (own rows,)."""
        return self.graph.degrees()

    @cached_property
    def columns(self) -> Columns:
        """The columns of the own entries. Cost: that of Columns, when first asked for."""
        return Columns(self.comm, self.graph.partition, self.graph.columns, self.config.execution.wire)

    @cached_property
    def propagator(self) -> SpreadMatrix:
        """What powers are taken of, A = D^-1 S or S itself. Cost: that of `columns`."""
        return SpreadMatrix(
            self.columns, self.graph.indptr, self.values(), overlap=self.config.execution.overlap
        )

    def values(self) -> NDArray[np.float32]:
        """Return the values of A, (entries,)."""
        adjacency = self.config.embedding.input_matrix == "adjacency"
        return np.array(self.graph.weights) if adjacency else self.transition()

    def of_columns(self, own: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the value of each entry's column, (entries,), given those of the own nodes.

        Cost: a halo exchange of one column.
        """
        return self.columns.known(own.astype(np.float32))[self.columns.places]

    def gram(self, a: Blocks, b: Blocks) -> NDArray[np.float64]:
        """Return a^T b over all nodes, in fp32 within a batch of rows and fp64 over batches.

        Cost: an all-reduce of (columns, columns).
        """
        here = np.zeros((sum(x.shape[1] for x in a), sum(x.shape[1] for x in b)))
        for rows in row_chunks(a):
            one = torch.cat([x[rows] for x in a], 1)
            other = one if b is a else torch.cat([x[rows] for x in b], 1)
            here += (one.T @ other).numpy()
        total = np.empty_like(here)
        self.comm.Allreduce(here, total)
        return total

    def turn(self, blocks: Blocks, by: NDArray[np.float64]) -> None:
        """Multiply (own rows, columns) by a square matrix of its columns, in place."""
        turned = torch.from_numpy(by).float()
        for rows in row_chunks(blocks):
            made = torch.cat([x[rows] for x in blocks], 1) @ turned
            for block, columns in zip(blocks, self.widths(len(by)), strict=True):
                block[rows] = made[:, columns.start : columns.stop]

    def orthonormalize(self, blocks: Blocks, passes: int = 2) -> None:
        """Make the columns orthonormal over all nodes, in place; what depends on others becomes 0.

        By the eigenvectors of the Gram matrix: a pass leaves rounding times its condition number.

        Cost: an all-reduce of (columns, columns) a pass.
        """
        for _ in range(passes):
            values, basis = self.axes(self.gram(blocks, blocks))
            kept = values > values[-1] * 1e-10
            self.turn(blocks, basis * np.where(kept, 1 / np.sqrt(np.where(kept, values, 1.0)), 0.0))

    def axes(self, gram: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the eigenvalues of a symmetric matrix, ascending, and its eigenvectors, as rank 0 finds them.

        A vector's sign is free, and ranks must take the same one. By torch, since the threads of NumPy's own BLAS
        would go on spinning on the cores that torch's threads need next.

        Cost: a broadcast of (columns + 1, columns) in fp64.
        """
        found = np.empty((len(gram) + 1, len(gram)))
        if self.comm.rank == 0:
            values, basis = torch.linalg.eigh(torch.from_numpy(gram))
            found[0], found[1:] = values, basis
        self.comm.Bcast(found)
        return found[0], found[1:]

    def widths(self, columns: int) -> list[range]:
        """Return the blocks that so many columns are cut into."""
        width = min(self.config.execution.column_block, columns)
        return [range(at, min(at + width, columns)) for at in range(0, columns, width)]

    def transition(self) -> NDArray[np.float32]:
        """Return the values of A = D^-1 S (FastRP, section 3.1)."""
        return self.weights_times(inverse(self.degrees))

    def weights_times(self, own: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return each entry's weight times the number of its own node, (entries,)."""
        values = np.repeat(own.astype(np.float32), np.diff(self.graph.indptr))
        values *= self.graph.weights
        return values

    def zeros(self) -> Blocks:
        """Return zeros, (own rows, dim)."""
        widths = self.widths(self.config.embedding.dim)
        return [torch.zeros(len(self.graph.rows), len(columns)) for columns in widths]

    def gaussian(self, columns: int | None = None) -> Blocks:
        """Return normal numbers of variance 1/dim for the own nodes, whatever `projection` says.

        `columns` is dim unless it says otherwise.
        """
        embedding = self.config.embedding
        normal = embedding.model_copy(
            update={"projection": ProjectionConfig(kind="gaussian"), "feature_ratio": 0.0}
        )
        ones = np.ones(len(self.graph.rows))
        return [
            projection(normal, self.graph.n_nodes, self.graph.nodes, block, ones)
            for block in self.widths(columns or embedding.dim)
        ]

    def column(self, own: NDArray[np.float64]) -> Tensor:
        """Return a number for each own node as a column, (own rows, 1) fp32."""
        return torch.from_numpy(own).float()[:, None].contiguous()

    def multiply_transposed(self, column: Tensor) -> None:
        """Multiply by A^T = S D^-1, of a symmetric S, in place: S x = D (A x). Cost: a halo exchange of the columns."""
        column *= self.column(inverse(self.degrees))
        self.propagator.multiply(column, column)
        column *= self.column(self.degrees)

    def unit_rows(self, blocks: Blocks) -> None:
        """Scale each row to length 1, in place; 0 stays 0."""
        for rows in row_chunks(blocks):
            norms = row_norms(blocks, rows)
            factor = torch.where(norms > 0, 1 / norms, 0.0).float()[:, None]
            for block in blocks:
                block[rows] *= factor

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
            projection(embedding, graph.n_nodes, graph.nodes, columns, scale)
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
