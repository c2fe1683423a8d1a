"""A sparse matrix spread over ranks by rows, times dense rows spread alike.

The product of a row adds its entries in the order in which the caller stored them, whoever owns the columns: with the
order of global columns the result is bit-identical for any number of ranks. With `overlap` the columns of this rank
are multiplied while the halo travels, and the others added after: faster, and equal up to rounding.
"""

from __future__ import annotations

import warnings
from copy import copy
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpi_ops.columns import Columns, Integers
from mpi_ops.errors import TensorError

POLLS = 16
"""Pieces of the interior product between which a travelling halo is moved on."""


class SpreadMatrix:
    """This rank's rows of a sparse matrix. Every rank makes one together and multiplies alike."""

    def __init__(
        self, columns: Columns, indptr: Integers, values: NDArray[np.float32], *, overlap: bool = False
    ) -> None:
        """Take rows in compressed form: `indptr` (own rows + 1,), the entries' columns, `values` (entries,)."""
        self.columns, self.plan = columns, columns.plan
        self.n_rows, self.n_halo = columns.n_rows, columns.n_halo
        self._indptr, self._overlap = indptr, overlap
        self._place(values)

    def like(self, values: NDArray[np.float32]) -> Self:
        """Return a matrix with other values at the same entries, which shares this one's columns."""
        other = copy(self)
        other._place(values)
        return other

    def _place(self, values: NDArray[np.float32]) -> None:
        """Make the torch matrices: a whole one, or an interior in pieces and a border."""
        indptr, local = self._indptr, self.columns.places
        self._whole: Tensor | None = None
        self._interior: list[tuple[slice, Tensor]] = []
        if not self._overlap:
            self._whole = _csr(indptr, local, values, (self.n_rows, self.n_rows + self.n_halo))
            return
        inside = local < self.n_rows
        self._interior = _slices(*_only(indptr, local, values, inside), self.n_rows)
        border, columns_there, values_there = _only(indptr, local, values, ~inside)
        self._border = _csr(border, columns_there - self.n_rows, values_there, (self.n_rows, self.n_halo))

    def multiply(self, x: Tensor, out: Tensor, beta: float = 0.0) -> None:
        """Set `out` (own rows, columns) to the matrix times `x`, of which each rank holds its rows, and `beta` x `out`.

        They may be one.

        Raises:
            TensorError: not fp32, not contiguous, or not of this rank's rows.

        Cost: a halo exchange of the columns; 2 flop an entry and column.
        """
        for name, tensor in (("x", x), ("out", out)):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous() or len(tensor) != self.n_rows:
                raise TensorError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}, contiguous {tensor.is_contiguous()}: a product "
                    f"takes contiguous fp32 of {self.n_rows} rows"
                )
        operand = self.columns.operand(x.shape[1])
        travelling = self.plan.start(x, operand[self.n_rows :])
        operand[: self.n_rows] = x
        if self._whole is not None:
            travelling.wait()
            torch.addmm(out, self._whole, operand, beta=beta, out=out)
            return
        for rows, matrix in self._interior:
            torch.addmm(out[rows], matrix, operand[: self.n_rows], beta=beta, out=out[rows])
            travelling.poll()
        travelling.wait()
        if self.n_halo:
            torch.addmm(out, self._border, operand[self.n_rows :], out=out)

    def free(self) -> None:
        """Free the plan's communicator, for all that share it. Every rank calls it."""
        self.plan.free()


def _only(
    indptr: Integers, columns: NDArray[np.int32], values: NDArray[np.float32], keep: NDArray[np.bool_]
) -> tuple[Integers, NDArray[np.int32], NDArray[np.float32]]:
    """Return the entries to keep, in their order."""
    before = np.concatenate([[0], np.cumsum(keep)])
    return before[indptr], columns[keep], values[keep]


def _slices(
    indptr: Integers, columns: NDArray[np.int32], values: NDArray[np.float32], n_columns: int
) -> list[tuple[slice, Tensor]]:
    """Return the matrix in pieces of rows with about equally many entries."""
    n_rows = len(indptr) - 1
    cuts = np.searchsorted(indptr, np.linspace(0, indptr[-1], POLLS + 1)[1:-1])
    borders = np.unique(np.concatenate([[0], np.minimum(cuts, n_rows), [n_rows]]))
    made = []
    for a, b in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        entries = slice(int(indptr[a]), int(indptr[b]))
        piece = indptr[a : b + 1] - indptr[a]
        made.append((slice(a, b), _csr(piece, columns[entries], values[entries], (b - a, n_columns))))
    return made


def _csr(
    indptr: Integers, columns: NDArray[np.int32], values: NDArray[np.float32], shape: tuple[int, int]
) -> Tensor:
    """Return a torch CSR matrix over the arrays; 32-bit indices, which its product is made for, while they fit."""
    index = np.int32 if len(columns) < 2**31 else np.int64
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # CSR is called a beta, unchecked CSR a risk
        return torch.sparse_csr_tensor(
            torch.from_numpy(np.ascontiguousarray(indptr, index)),
            torch.from_numpy(columns.astype(index, copy=False)),
            torch.from_numpy(values),
            shape,
            check_invariants=False,
        )
