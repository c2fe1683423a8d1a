"""A line from every rank to the parent of its job, which the kernel cuts when the rank dies: who went first.

A process descriptor would not tell. It wakes once the last thread of a process is gone, but MPICH's mpiexec ends the
other ranks as soon as the dead one's socket to it closes, which is earlier: a rank that was ended because of another
is often heard of before that one. A rank opens its line after that socket, and Linux closes what a dying process
has open from the last to the first, so the line is cut before mpiexec can know. One epoll over all lines keeps the
order of the cuts, however late the parent gets to look.
"""

from __future__ import annotations

import os
import select
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

VARIABLE = "ISOFLOP_LIFELINE"
SAY_WITHIN_S = 5.0
_held: list[socket.socket] = []


def hold(rank: int, environment: Mapping[str, str] = os.environ) -> None:
    """Open this rank's line, for as long as the process lives; nothing where no parent waits, as on another host."""
    path = environment.get(VARIABLE)
    if path:
        line = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            line.connect(path)
            line.sendall(rank.to_bytes(4, "little"))
            _held.append(line)


class Lifelines:
    """The parent's end of the lines of `ranks` ranks. `first_gone` is the rank whose line was cut first, -1 unknown.

    None is named unless all hold a line: one that does not, as on another host, may have gone before.
    """

    def __init__(self, ranks: int) -> None:
        self.first_gone = -1
        self._ranks, self._lines = ranks, dict[int, tuple[int, socket.socket]]()
        # For this user alone, and wherever TMPDIR leads: the path of a socket has 107 bytes at most.
        self._place = tempfile.TemporaryDirectory(prefix="isoflop-", dir="/tmp")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(socket.SOMAXCONN)
        self._ready = select.epoll()
        self._ready.register(self._listener, select.EPOLLIN)
        self._in_order = True
        """No line is cut so far: the next one to be cut is the first."""

    @property
    def path(self) -> str:
        """Where ranks find it: the value of VARIABLE in their environment."""
        return str(Path(self._place.name) / "line")

    def watch(self, seconds: float) -> None:
        """Wait so long, or until something happens to a line."""
        for descriptor, _ in self._ready.poll(seconds):
            if descriptor == self._listener.fileno():
                self._take()
            else:
                rank, line = self._lines[descriptor]
                self._ready.unregister(line)
                if self._in_order and len(self._lines) == self._ranks:
                    self.first_gone = rank
                self._in_order = False

    def _take(self) -> None:
        line, _ = self._listener.accept()
        line.settimeout(SAY_WITHIN_S)
        with suppress(OSError):
            said = line.recv(4, socket.MSG_WAITALL)
            if len(said) == 4:
                self._lines[line.fileno()] = int.from_bytes(said, "little"), line
                self._ready.register(line, select.EPOLLIN | select.EPOLLRDHUP)
                self._in_order &= not _is_cut(line)  # before there was an order to keep
                return
        line.close()

    def close(self) -> None:
        """Let go of all lines."""
        self._ready.close()
        for _, line in self._lines.values():
            line.close()
        self._listener.close()
        self._place.cleanup()


def _is_cut(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return not line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
