"""A signal to any one rank stops them all after the same step, so that what they commit is one state.

A scheduler that wants the nodes back sends its warning to whom it likes: to one rank, to all, twice. No rank may
stop on its own word, for the others would wait for it in their next step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Self

import numpy as np
from mpi4py import MPI

from launch.agree import wait_until

WARNING = signal.SIGUSR1
"""What the scheduler sends before the time is up. Not USR2: it ends MPICH's mpiexec."""


class StopSignals:
    """Notes WARNING and TERM from now on, and asks all ranks at each step boundary whether any of them got one.

    What a rank heard before boundary n is known to all at boundary n + 1: the question travels during the step
    between them, so no step waits for it. Every rank makes one and calls `boundary` equally often. Once they have
    agreed to stop, further signals change nothing until the process ends.
    """

    def __init__(
        self, comm: MPI.Intracomm, numbers: Iterable[signal.Signals] = (WARNING, signal.SIGTERM)
    ) -> None:
        self._comm = comm.Dup()
        self._heard = 0
        self._asked, self._answer = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._request = MPI.REQUEST_NULL
        self._previous = {number: signal.signal(number, self._note) for number in numbers}

    def boundary(self) -> signal.Signals | None:
        """Return the signal for which all ranks are to commit and stop here, None to go on; alike on every rank.

        Cost: one all-reduce of 4 bytes, waited for a step later.
        """
        wait_until(self._request.Test)
        if self._answer[0]:
            return signal.Signals(int(self._answer[0]))
        self._asked[0] = self._heard
        self._request = self._comm.Iallreduce(self._asked, self._answer, MPI.MAX)
        return None

    def now(self) -> signal.Signals | None:
        """Return what `boundary` would at the next call: for steps so few and long that one more is too many.

        Cost: one all-reduce of 4 bytes, waited for here.
        """
        return self.boundary() or self.boundary()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._heard = number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._answer[0]:  # who has stopped is about to end, and a second signal must not end it before
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        if kind is None:  # after an error others may never answer
            wait_until(self._request.Test)
            self._comm.Free()
