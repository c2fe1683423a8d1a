"""Run the cases of the modules named on the command line on every rank, and print what went wrong as JSON.

Rank 0 prints {"module.case": {rank: traceback, ...}, ...}; a case without a fault has an empty entry, and the first
that has one is the last. A rank that fails alone leaves the others waiting until the operation's time limit.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator

from mpi4py import MPI

from mpi_ops.process_group import destroy_process_group, init_process_group
from tests.mpi_ops.on_ranks.world import World

TIMEOUT_S = 20.0


def cases(modules: list[str]) -> Iterator[tuple[str, Callable[[World], None]]]:
    """Yield each case's name and function, in the order of the source."""
    for name in modules:
        module = importlib.import_module(f"tests.mpi_ops.on_ranks.{name}")
        for function, case in tuple(vars(module).items()):
            if function.startswith("test_"):
                yield f"{name}.{function}", case


def fault(case: Callable[[World], None], world: World) -> str | None:
    """Return the traceback of a case that fails on this rank."""
    try:
        case(world)
    except Exception:
        return traceback.format_exc(limit=-4)
    return None


def main() -> None:
    """Run as one rank."""
    comm = MPI.COMM_WORLD
    init_process_group(comm, timeout_s=TIMEOUT_S)
    world = World.of(comm)
    report = {}
    for name, case in cases(sys.argv[1:]):
        faults = comm.allgather(fault(case, world))
        report[name] = {rank: each for rank, each in enumerate(faults) if each}
        if report[name]:
            break  # the ranks may be out of step
    destroy_process_group(comm)
    if comm.rank == 0:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
