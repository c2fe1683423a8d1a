"""One operation under way: MPI requests, the tensors they touch, and what is due when they are done.

MPI moves data only inside MPI calls, so somebody has to call: `wait()` and `is_completed()` do, and for the one
who asked for a future and then waits in C++ (DistributedDataParallel's reducer) a thread does.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import torch
from mpi4py import MPI
from torch import Tensor
from torch._C import _distributed_c10d as c10d
from torch.futures import Future

from mpi_ops.errors import OperationError, OperationTimeoutError, reason

if TYPE_CHECKING:
    from mpi_ops.counters import Tally
    from mpi_ops.group import Group

# A waiting rank polls hot for some 15 us, then lets others run between two polls, and after some 250 us sleeps
# between them. On two cores this is as fast as MPI's own waiting, and 2 to 8 times faster with four ranks on them.
HOT_POLLS = 50
YIELDING_POLLS = 200
NAP_S = 50e-6
EAGER_S = 20e-3
"""How long the thread polls without naps while the core it is on is its own."""
NICE = 10
"""The thread's niceness: what backward computes goes first where both want the core."""
ANNOUNCE_AFTER_S = 1.0
NO_TIMEOUT = timedelta(0)
CALLBACKS_S = 5.0
"""How long the end of a program waits for what was to be called when a future is done."""


@dataclass(slots=True)
class Posted:
    """An operation that MPI has accepted."""

    requests: list[MPI.Request]
    results: list[Tensor]
    """What the operation writes; the value of its future."""
    sent_bytes: int = 0
    held: Sequence[object] = ()
    """What else MPI reads and writes until the end."""
    finish: Callable[[], object] | None = None
    """What turns the messages into the results."""
    peer: int | None = None
    """The other rank of a point-to-point operation, in the group."""
    status: MPI.Status | None = None
    """Where a receive leaves its source and length."""

    def tester(self) -> Callable[[], bool]:
        """Return the call that asks MPI whether all requests are done; Testall costs 7 times one Test."""
        if len(self.requests) == 1:
            return partial(self.requests[0].Test, self.status)
        return partial(MPI.Request.Testall, self.requests)


class Work(c10d.Work):
    """The handle that torch.distributed waits on. The group keeps it, and it the tensors, until MPI is done."""

    def __init__(
        self, group: Group, op: str, sequence: int, posted: Posted, tally: Tally, timeout_s: float
    ) -> None:
        super().__init__()
        self.op, self.sequence, self.posted = op, sequence, posted
        self._test = posted.tester()
        self._group, self._tally, self._timeout_s = group, tally, timeout_s
        self._over = self._announced = False
        self._error: Exception | None = None
        self._future: Future[list[Tensor]] | None = None
        self._lock = threading.Lock()
        group.pending.add(self)

    def __str__(self) -> str:
        return f"{self.op} on {self._group}"

    def place(self) -> str:
        """Return in words which of the group's operations this is: a collective's number, or the other rank."""
        peer = self.posted.peer
        if self.sequence:
            return f"{self}, its collective {self.sequence}"
        if peer is None or peer == MPI.ANY_SOURCE:
            return f"{self}, with any rank" if peer is not None else str(self)
        return f"{self}, with world rank {self._group.ranks[peer]}"

    def wait(self, timeout: timedelta = NO_TIMEOUT) -> bool:
        """Return True when the operation is done; a positive `timeout` goes before the group's.

        Raises:
            OperationTimeoutError: it did not end in time. MPI takes no operation back: the group is lost.
            OperationError: MPI could not carry it out.
        """
        began_s = time.perf_counter()
        try:
            for _ in range(HOT_POLLS):
                if self.is_completed():
                    break
            else:
                self._wait_patiently(began_s, max(timeout, NO_TIMEOUT).total_seconds() or self._timeout_s)
        finally:
            self._tally.seconds += time.perf_counter() - began_s
        if self._error is not None:
            raise self._error
        return True

    def _wait_patiently(self, began_s: float, timeout_s: float) -> None:
        for _ in range(YIELDING_POLLS):
            os.sched_yield()
            if self.is_completed():
                return
        _waited_for.append(self)
        try:
            while not self.poll(began_s, timeout_s):
                time.sleep(NAP_S)
        finally:
            _waited_for.remove(self)

    def is_completed(self) -> bool:
        """Poll once, unless another thread is at it; return whether the operation is over, well or not."""
        if self._over or not self._lock.acquire(blocking=False):
            return self._over
        try:
            if self._over or not self._advance():
                return self._over
            future = self._future
        finally:
            self._lock.release()
        self._settle(future)
        return True

    def poll(self, began_s: float, timeout_s: float | None = None) -> bool:
        """Poll once for somebody who waits since `began_s`; return whether the operation is over.

        It is over, with an error, once the wait has lasted `timeout_s` (default: the operation's own).
        """
        if self.is_completed():
            return True
        limit_s = timeout_s or self._timeout_s
        waited_s = time.perf_counter() - began_s
        if not self._announced and waited_s >= min(ANNOUNCE_AFTER_S, limit_s / 2):
            self._announced = True
            self._group.announce(self)
        if waited_s >= limit_s:
            self._expire(limit_s)
        return self._over

    def get_future(self) -> Future[list[Tensor]]:
        """Return the future of the results; it completes without further calls from this thread."""
        with self._lock:
            if self._future is not None:
                return self._future
            self._future = future = Future[list[Tensor]]()
            over = self._over
        if over:
            self._settle(future)
        else:
            _watched.add(self)
        return future

    def result(self) -> list[Tensor]:
        """Return the tensors that the operation writes."""
        return self.posted.results

    def is_success(self) -> bool:
        """Return whether the operation is over and went well."""
        return self._over and self._error is None

    def exception(self) -> Exception | None:
        """Return what went wrong, if anything did."""
        return self._error

    def synchronize(self) -> None:
        """Do nothing: a CPU has no stream to order."""

    def source_rank(self) -> int:
        """Return the rank in the group that a received message came from."""
        status = self.posted.status
        return -1 if status is None else status.source

    _source_rank = source_rank

    def _advance(self) -> bool:
        """Ask MPI; once it is done, do what is due and let go of the memory. The lock is held."""
        posted = self.posted
        try:
            if not self._test():
                return False
            self._finish()
        except MPI.Exception as error:
            self._error = OperationError(f"{self}: {reason(error)}")
        if self._error is None or len(posted.requests) == 1:  # else some may still write into their memory
            self._group.pending.discard(self)
            posted.held = ()
        posted.finish = None
        self._over = True
        return True

    def _finish(self) -> None:
        if self.posted.finish is None:
            return
        try:
            with torch.no_grad():
                self.posted.finish()
        except OperationError as error:
            self._error = OperationError(f"{self}: {error}")
        except Exception as error:
            self._error = error

    def _expire(self, limit_s: float) -> None:
        """Give up: the operation is over with an error, though its memory still belongs to MPI."""
        error = OperationTimeoutError(f"{self}: not done after {limit_s:g} s; {self._group.absent(self)}")
        with self._lock:
            if self._over:
                return
            self._over, self._error = True, error
            future = self._future
        self._settle(future)

    def _settle(self, future: Future[list[Tensor]] | None) -> None:
        if future is None:
            return
        if self._error is None:
            future.set_result(self.posted.results)
        else:
            future.set_exception(self._error)  # type: ignore[arg-type]  # torch's stub has the value's type


def waiting() -> str:
    """Return the operation that this process waits in for longer than some 250 us, in words; empty where in none."""
    return next((work.place() for work in reversed(list(_waited_for))), "")


_waited_for: list[Work] = []


class _Watched:
    """The works that somebody awaits through a future, and a thread that polls them and sleeps while there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._works: list[tuple[Work, float]] = []
        self._thread: threading.Thread | None = None
        self._ending = False
        atexit.register(self._end)

    def add(self, work: Work) -> None:
        with self._changed:
            self._works.append((work, time.perf_counter()))
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._poll, name="mpi4py-backend", daemon=True)
                self._thread.start()

    def _end(self) -> None:
        """End the thread before the interpreter goes: cut off in a future's C++ code it would abort the process."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CALLBACKS_S)

    def _poll(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while works := self._next():
            over = {work for work, began_s in works if work.poll(began_s)}
            with self._changed:
                self._works = [each for each in self._works if each[0] not in over]
            if len(over) < len(works):
                self._rest(eager=time.perf_counter() - works[-1][1] < EAGER_S)

    def _next(self) -> list[tuple[Work, float]]:
        """Wait until there are works and return them; none when the program or MPI has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._works or self._ending)
            return [] if self._ending or MPI.Is_finalized() else list(self._works)

    @staticmethod
    def _rest(eager: bool) -> None:
        """Let others run: a yield that takes no time was asked for on a core that nobody else wants."""
        began_s = time.perf_counter()
        if eager:
            os.sched_yield()
        if not eager or time.perf_counter() - began_s > NAP_S:
            time.sleep(NAP_S)


_watched = _Watched()
