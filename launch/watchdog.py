"""Ends a job in which nothing moves any more, and says which rank is late, in what and after which step.

One rank that hangs makes all others wait for it, and MPI waits for ever. A thread on every rank looks at when its
program last said that it goes on. When that is too long ago each dumps its stacks and tells the first two ranks what
its program is doing; from all that, the first of them that can speak names the late ones.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from mpi4py import MPI

from launch.bootstrap import Job
from launch.rundir import write_exit

ROOT = Path(__file__).resolve().parent.parent
ANSWER_S = 3.0
"""How long the first ranks wait for what the others say."""
LISTENERS = 2
"""Ranks that are told; the first may be the one that hangs."""
SHOWN = 8
"""Ranks named in one sentence."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank was doing when nothing moved."""

    step: int
    """Last finished."""
    doing: str
    waits: bool
    """Whether that is waiting for other ranks, as far as the program knows."""


class Watchdog:
    """Watches the program of a rank from a thread. Every rank makes one; `beat` says that the program goes on.

    `waiting` returns the operation on other ranks that the program waits in, in words, or nothing; the thread asks
    it. Where the program says nothing, the line of code it is in stands for it.

    Cost: a duplicated communicator, and nothing in messages until the end.
    """

    def __init__(self, job: Job, limit_s: float, waiting: Callable[[], str] = str) -> None:
        self._job, self._limit_s, self._waiting = job, limit_s, waiting
        self._comm = job.comm.Dup()
        self._program = threading.get_ident()
        self._beat_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._thread.start()

    def beat(self) -> None:
        """Say that the program goes on."""
        self._beat_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if kind is None:
            self._comm.Free()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit_s / 4)):
            if time.monotonic() - self._beat_s > self._limit_s:
                self._bark()
                return

    def _bark(self) -> None:
        told = [f"nothing has moved for {self._limit_s:g} s; its stacks:", *_stacks()]
        sys.stderr.write("".join(f"rank {self._comm.rank}: {line}\n" for line in told))
        sys.stderr.flush()
        report, listeners = self._report(), range(min(LISTENERS, self._comm.size))
        sent = [self._comm.isend(report, listener) for listener in listeners]
        if self._comm.rank in listeners:
            reports = self._listen()
            # The first rank has the word; the second waits to see whether it takes it.
            if self._comm.rank == 0 or 0 not in reports or not self._over.wait(2 * ANSWER_S):
                self._end(reports)
        MPI.Request.Waitall(sent)

    def _report(self) -> Report:
        waits = self._waiting()
        return Report(self._job.step, f"waits in {waits}" if waits else self._line(), bool(waits))

    def _line(self) -> str:
        """Return the innermost line of this project's code that the program is in."""
        frame = found = sys._current_frames().get(self._program)
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(ROOT):
                found = frame
                break
            frame = frame.f_back
        if found is None:
            return "has ended"
        path = Path(found.f_code.co_filename)
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        return f"is at {shown}:{found.f_lineno} in {found.f_code.co_name}"

    def _listen(self) -> dict[int, Report]:
        """Return the ranks' reports, of as many as answer in time."""
        reports: dict[int, Report] = {}
        deadline_s = time.monotonic() + ANSWER_S + min(1.0, self._limit_s / 4)
        status = MPI.Status()
        while len(reports) < self._comm.size and time.monotonic() < deadline_s:
            message = self._comm.improbe(status=status)
            if message is None:
                time.sleep(0.01)
            else:
                reports[status.source] = message.recv()
        return reports

    def _end(self, reports: Mapping[int, Report]) -> None:
        """Write down who is late and end the job."""
        rank, cause = verdict(reports, self._comm.size)
        step = reports[rank].step if rank in reports else self._job.step
        cause = f"nothing has moved for {self._limit_s:g} s: {cause}"
        record = replace(self._job.exit_record(1, cause), rank=rank, step=step)
        sys.stderr.write(f"rank {self._comm.rank}: {cause}\n")
        sys.stderr.flush()
        try:
            write_exit(self._job.run, self._job.attempt, record)
        finally:
            self._comm.Abort(1)


def verdict(reports: Mapping[int, Report], world_size: int) -> tuple[int, str]:
    """Return the first late rank and one sentence on all ranks.

    Late are those that do not answer; else those behind in steps; else those that do not wait where others do;
    else those that are where fewest are, since what hangs is the exception.
    """
    silent = [rank for rank in range(world_size) if rank not in reports]
    first_step = min((report.step for report in reports.values()), default=-1)
    behind = [rank for rank, report in reports.items() if report.step == first_step]
    busy = [rank for rank, report in reports.items() if not report.waits]
    places = Counter(report.doing for report in reports.values())
    rare = [rank for rank, report in reports.items() if places[report.doing] == min(places.values())]
    late = next(
        (sorted(ranks) for ranks in (silent, behind, busy, rare) if 0 < len(ranks) < world_size),
        list(range(world_size)),
    )
    what = [
        f"{_ranks(late)} {'are' if len(late) > 1 else 'is'} late"
        + (f", without a word after step {first_step}" if late == silent else "")
    ]
    held: dict[tuple[int, str], list[int]] = {}
    for rank in sorted(reports, key=lambda rank: (rank not in late, rank)):
        held.setdefault((reports[rank].step, reports[rank].doing), []).append(rank)
    what += [f"{_ranks(ranks)}, after step {step}, {doing}" for (step, doing), ranks in held.items()]
    return late[0], "; ".join(what)


def _stacks() -> Iterator[str]:
    """Yield where each thread is, the innermost line last. No source is read: its file system may be what hangs."""
    for thread, frame in sys._current_frames().items():
        yield f"thread {thread:#x}:"
        for called, line in reversed(list(traceback.walk_stack(frame))):
            yield f"  {called.f_code.co_filename}:{line} in {called.f_code.co_name}"


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:SHOWN])) + (
        f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    )
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
