"""Calls, bytes and seconds of every operation of every group on this rank.

`sent_bytes` is the payload that this rank hands to an operation, in the tensor's own dtype and before any
algorithm multiplies it, its own share included: the whole tensor for all_reduce, reduce, reduce_scatter and
all_to_all; the rank's own piece for all_gather and gather; everything on the root and nothing elsewhere for
broadcast and scatter; the message for send; nothing for recv and barrier.

`seconds` is the time this rank spent inside the operation: starting it and, later, waiting for it. What an
asynchronous operation does behind a computation costs nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpCount:
    """What one operation of one group has cost this rank since the last reset."""

    op: str
    group: str
    """The group's description where it has one (a DeviceMesh gives `mesh_<axis>`), else its name."""
    calls: int
    sent_bytes: int
    seconds: float


class Tally:
    """The running figures behind an OpCount; the backend adds to it."""

    __slots__ = ("calls", "seconds", "sent_bytes")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Count from nothing again."""
        self.calls, self.sent_bytes, self.seconds = 0, 0, 0.0


_tallies: dict[tuple[str, str], Tally] = {}


def tally(op: str, group: str) -> Tally:
    """Return the running figures of `op` on `group`; the same object for the life of the process."""
    return _tallies.setdefault((op, group), Tally())


def snapshot() -> list[OpCount]:
    """Return the figures of every operation called since the last reset, ordered by operation and group."""
    return [
        OpCount(op, group, each.calls, each.sent_bytes, each.seconds)
        for (op, group), each in sorted(_tallies.items())
        if each.calls
    ]


def seconds() -> float:
    """Return the time that this rank has spent in operations since the last reset."""
    return sum(each.seconds for each in _tallies.values())


def reset() -> None:
    """Count from nothing again."""
    for each in _tallies.values():
        each.clear()
