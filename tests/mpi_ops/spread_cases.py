"""Halos and products of matrices spread over ranks; test_spread.py starts and judges them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mpi4py import MPI

from mpi_ops import counters
from mpi_ops.columns import Columns
from mpi_ops.errors import TensorError
from mpi_ops.halo import HaloPlan
from mpi_ops.partition import RowPartition, even
from mpi_ops.row_exchange import RowExchange
from mpi_ops.spmm import SpreadMatrix

N = 61


def matrix(n: int = N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (indptr, columns, values) of a matrix with a full row, a full column, and empty rows."""
    rng = np.random.default_rng(5)
    dense = (rng.random((n, n)) < 0.1) * rng.standard_normal((n, n))
    dense[n // 2] = rng.standard_normal(n)
    dense[:, 3] = 1.0
    dense[[0, n - 1]] = 0.0
    rows, columns = np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(n + 1))
    return indptr, columns.astype(np.int32), dense[rows, columns].astype(np.float32)


def spread(comm: MPI.Intracomm, partition: RowPartition, wire: str = "fp32", **options) -> SpreadMatrix:
    """Return this rank's rows of `matrix`."""
    indptr, columns, values = matrix()
    mine = partition.rows(comm.rank)
    entries = slice(indptr[mine.start], indptr[mine.stop])
    own = indptr[mine.start : mine.stop + 1] - indptr[mine.start]
    there = Columns(comm, partition, columns[entries], wire)
    return SpreadMatrix(there, own, values[entries], **options)


def dense_rows(columns: int) -> torch.Tensor:
    return torch.randn(N, columns, generator=torch.Generator().manual_seed(columns))


def partitions(comm: MPI.Intracomm) -> list[RowPartition]:
    """Return equal stretches, and one rank that has nearly all rows."""
    return [even(N, comm.size), RowPartition((*range(comm.size), N))]


def test_a_halo_is_the_rows_that_were_asked_for(comm: MPI.Intracomm) -> None:
    for partition in partitions(comm):
        mine = partition.rows(comm.rank)
        wanted = np.array([row for row in range(0, N, 3) if row not in mine], np.int64)
        for wire, tolerance in (("fp32", 0.0), ("bf16", 2**-8), ("fp16", 2**-11)):
            plan = HaloPlan(comm, partition, wanted, wire)
            for columns in (1, 2, 33):
                rows, halo = dense_rows(columns), torch.full((len(wanted), columns), torch.nan)
                plan.exchange(rows[mine.start : mine.stop].contiguous(), halo)
                error = (halo - rows[wanted]).abs() - tolerance * rows[wanted].abs()
                assert error.max().item() <= 0 if len(wanted) else True, (wire, columns)
            plan.free()


def test_exchanges_may_be_under_way_together(comm: MPI.Intracomm) -> None:
    """Messages this large are still in the sender's memory when the next exchange begins."""
    partition = even(N, comm.size)
    mine = partition.rows(comm.rank)
    others = np.array([row for row in range(N) if row not in mine], np.int64)
    plan, columns = HaloPlan(comm, partition, others), 20_000
    for rounds in range(2):
        halos = [torch.empty(len(others), columns) for _ in range(2)]
        under_way = [
            plan.start(torch.full((len(mine), columns), float(i + 2 * rounds)), halo)
            for i, halo in enumerate(halos)
        ]
        for i, (travelling, halo) in enumerate(zip(under_way, halos, strict=True)):
            travelling.wait()
            assert (halo == i + 2 * rounds).all()
    plan.free()


def test_bytes_on_the_wire_are_the_plans(comm: MPI.Intracomm) -> None:
    partition = even(N, comm.size)
    mine = partition.rows(comm.rank)
    others = np.array([row for row in range(N) if row not in mine], np.int64)
    for wire, itemsize in (("fp32", 4), ("fp16", 2)):
        plan = HaloPlan(comm, partition, others, wire)
        rows = dense_rows(5)[mine.start : mine.stop].contiguous()
        counters.reset()
        plan.exchange(rows, torch.empty(len(others), 5))
        sent = sum(each.sent_bytes for each in counters.snapshot() if each.op == "halo")
        everyone_needs_my_rows = len(mine) * (comm.size - 1) * 5 * itemsize
        assert sent == plan.sent_bytes(5) == everyone_needs_my_rows
        assert plan.neighbours == comm.size - 1
        plan.free()


def test_a_product_is_that_of_one_process_bit_by_bit(comm: MPI.Intracomm) -> None:
    alone = spread(MPI.COMM_SELF, even(N, 1))
    for partition in partitions(comm):
        mine = partition.rows(comm.rank)
        here = spread(comm, partition)
        for columns in (1, 7, 32):
            x, want = dense_rows(columns), torch.empty(N, columns)
            alone.multiply(x, want)
            got = x[mine.start : mine.stop].contiguous()
            here.multiply(got, got)  # in place
            assert torch.equal(got, want[mine.start : mine.stop])
        here.free()
    alone.free()


def test_a_product_is_the_dense_one(comm: MPI.Intracomm) -> None:
    indptr, columns, values = matrix()
    dense = torch.zeros(N, N, dtype=torch.float64)
    dense[np.repeat(np.arange(N), np.diff(indptr)), columns.astype(np.int64)] = torch.from_numpy(
        values
    ).double()
    for partition in partitions(comm):
        mine = partition.rows(comm.rank)
        for options, tolerance in (({}, 1e-6), ({"overlap": True}, 1e-6), ({"wire": "fp16"}, 1e-2)):
            here = spread(comm, partition, **options)
            x = dense_rows(6)
            want = (dense @ x.double())[mine.start : mine.stop]
            got = torch.full((len(mine), 6), torch.nan)
            here.multiply(x[mine.start : mine.stop].contiguous(), got)
            assert (got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1), options
            here.multiply(x[mine.start : mine.stop].contiguous(), got, beta=-3.0)
            assert (got + 2 * want).abs().max() <= 4 * tolerance * want.abs().max().clamp(min=1), options
            here.free()


def test_entries_learn_what_others_say_of_their_columns(comm: MPI.Intracomm) -> None:
    indptr, columns, _ = matrix()
    for partition in partitions(comm):
        mine = partition.rows(comm.rank)
        own = columns[indptr[mine.start] : indptr[mine.stop]]
        there = Columns(comm, partition, own)
        for kind in (np.int32, np.int64, np.float32, np.float64):
            said = (np.arange(N) * 3 - 7).astype(kind) / kind(2 if kind in (np.float32, np.float64) else 1)
            said = said.astype(kind)
            got = there.known(said[mine.start : mine.stop])[there.places]
            assert got.dtype == kind
            np.testing.assert_array_equal(got, said[own])
        there.free()
    half = Columns(comm, even(N, comm.size), columns, "bf16")
    with pytest.raises(TensorError, match=r"int64 does not travel as torch\.bfloat16"):
        half.known(np.zeros(half.n_rows, np.int64))
    half.free()


def test_rows_move_to_the_ranks_that_are_named_and_back(comm: MPI.Intracomm) -> None:
    indptr, columns, values = matrix()
    to = np.random.default_rng(1).integers(0, comm.size, N) if comm.size < 4 else np.full(N, 2)
    for partition in partitions(comm):
        mine = partition.rows(comm.rank)
        moving = RowExchange(comm, to[mine.start : mine.stop])
        come = np.flatnonzero(to == comm.rank)
        rows = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
        there = moving.there(rows[mine.start : mine.stop])
        np.testing.assert_array_equal(there, rows[come])
        np.testing.assert_array_equal(moving.back(there + 1), rows[mine.start : mine.stop] + 1)
        own = indptr[mine.start : mine.stop + 1]
        for entries in (columns, values):
            got = moving.entries_there(own - own[0], entries[own[0] : own[-1]])
            want = [entries[indptr[row] : indptr[row + 1]] for row in come]
            np.testing.assert_array_equal(got, np.concatenate([entries[:0], *want]))


def test_what_mpi_would_misread_is_refused(comm: MPI.Intracomm) -> None:
    here = spread(comm, even(N, comm.size))
    rows = here.n_rows
    for wrong in (torch.ones(rows, 2).double(), torch.ones(2, rows).T, torch.ones(rows + 1, 2)):
        with pytest.raises(TensorError, match="takes contiguous fp32"):
            here.multiply(wrong, torch.empty(rows, 2))
    with pytest.raises(TensorError, match="below 2 GiB"):
        here.plan.start(torch.empty(rows, here.plan.widest + 1, device="meta"), torch.empty(0))
    here.free()
