"""The rank's side of the metrics: rank 0 owns the file, every rank adds its step times to shared histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from analysis.store.schema import SLOWEST, DistSpec, StreamSpec
from analysis.store.writer import MetricsWriter

STEP_TIME = DistSpec("step_time", "s")
OWN_TIME = DistSpec("own_time", "s")
"""Step time without communication. Ranks that wait for each other take equally long: this tells who is slow."""


class Metrics:
    """Metrics of one attempt. Every rank makes one and calls `step` for each step; `record` acts on rank 0 alone."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        path: Path,
        *,
        meta: Mapping[str, str | int | float],
        streams: Sequence[StreamSpec],
        summary: Sequence[str],
        every: int = 100,
    ) -> None:
        """Open `path` on rank 0; step times are reduced over the ranks every `every` steps.

        Raises:
            StoreError: on rank 0, when the file exists or cannot be written.
        """
        self._comm = comm.Dup()  # its own, so that its reductions never meet another part's
        self._every = every
        self._times_s: dict[DistSpec, list[float]] = {STEP_TIME: [], OWN_TIME: []}
        self._writer = (
            MetricsWriter(path, meta=meta, streams=streams, dists=list(self._times_s), summary=summary)
            if comm.rank == 0
            else None
        )

    def record(self, step: int, tokens: int, **values: float) -> None:
        """Add one row to each named stream."""
        if self._writer:
            for name, value in values.items():
                self._writer.append(name, step=step, tokens=tokens, value=value)

    def event(self, kind: str, message: str, step: int = -1) -> None:
        """Add an event."""
        if self._writer:
            self._writer.event(kind, message, step)

    def step(self, step: int, wall_s: float, waited_s: float = 0.0) -> None:
        """Note how long this rank's step took, and how much of that it spent in communication.

        Cost: every `every` steps two reductions of 64 counts and two gathers of 4 numbers a rank; else nothing.
        """
        self._times_s[STEP_TIME].append(wall_s)
        self._times_s[OWN_TIME].append(wall_s - waited_s)
        if len(self._times_s[STEP_TIME]) >= self._every:
            self._reduce(step)

    def total(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sum over ranks, on every rank. Cost: an all-reduce."""
        summed = np.empty_like(counts)
        self._comm.Allreduce(counts, summed)
        return summed

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest of the ranks' values, on every rank. Cost: an all-reduce."""
        found = np.empty_like(values)
        self._comm.Allreduce(values, found, op=MPI.MAX)
        return found

    def flush(self) -> None:
        """Make all rows so far safe from a kill; due before a checkpoint, which makes them count for good."""
        if self._writer:
            self._writer.flush()

    def finish(self, step: int, **summary: float) -> None:
        """Reduce what is left and set the summary. Every rank calls it."""
        self._reduce(step)
        if self._writer:
            self._writer.set_summary(**summary)

    def close(self) -> None:
        """Close the file and free the communicator."""
        if self._writer:
            self._writer.close()
        self._comm.Free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._writer:
            self._writer.close()  # freeing the communicator would wait for ranks that may be gone

    def _reduce(self, step: int) -> None:
        for dist, noted in self._times_s.items():
            self._reduce_one(step, dist, np.array(noted))
            noted.clear()

    def _reduce_one(self, step: int, dist: DistSpec, times_s: NDArray[np.float64]) -> None:
        counts = dist.count(times_s)
        total = np.empty_like(counts)
        self._comm.Reduce(counts, total, op=MPI.SUM)
        median = np.median(times_s) if times_s.size else np.nan
        mine = np.array([times_s.min(initial=np.inf), times_s.max(initial=0.0), times_s.sum(), median])
        ranks = np.empty((self._comm.size, 4)) if self._comm.rank == 0 else None
        self._comm.Gather(mine, ranks)
        if self._writer is None or ranks is None or not total.sum():
            return
        slowest = np.full(SLOWEST, -1, np.int32)
        order = np.argsort(-ranks[:, 2], kind="stable")[:SLOWEST]
        slowest[: len(order)] = order
        self._writer.distribution(
            dist.name,
            step=step,
            low=ranks[:, 0].min(),
            median=float(np.nanmedian(ranks[:, 3])),
            high=ranks[:, 1].max(),
            slowest=slowest,
            counts=total,
        )
