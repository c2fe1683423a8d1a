"""Work of which every rank must know whether it went well on all of them, so that none waits for one that failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mpi4py import MPI

SHORTEST_NAP_S, LONGEST_NAP_S = 2e-5, 2e-3

Made = TypeVar("Made")


def everywhere(comm: MPI.Intracomm, work: Callable[[], Made]) -> Made:
    """Return what `work` made on this rank, once it has gone well on all; else every rank raises the first's error.

    Cost: a barrier and an all-reduce of one number; a broadcast of the error when there is one.
    """
    try:
        made, fault = work(), None
    except Exception as error:
        fault = error
    _meet(comm)
    first = comm.allreduce(comm.size if fault is None else comm.rank, MPI.MIN)
    if first < comm.size:
        raise comm.bcast(fault, first)
    return made


def on_root(comm: MPI.Intracomm, work: Callable[[], Made]) -> Made:
    """Return on every rank what `work` made on rank 0, or raise its error on every rank.

    Cost: a barrier and a broadcast.
    """
    made, fault = None, None
    if comm.rank == 0:
        try:
            made = work()
        except Exception as error:
            fault = error
    _meet(comm)
    outcome: tuple[Made, Exception | None] = comm.bcast((made, fault))
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def wait_until(ready: Callable[[], bool]) -> None:
    """Return once `ready()` is true. It naps, for MPI's own waiting would keep from a core who computes there."""
    nap_s = SHORTEST_NAP_S
    while not ready():
        time.sleep(nap_s)
        nap_s = min(2 * nap_s, LONGEST_NAP_S)


def _meet(comm: MPI.Intracomm) -> None:
    wait_until(comm.Ibarrier().Test)
