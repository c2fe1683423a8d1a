"""Run the cases of a module, functions `test_*(comm)`, on every rank; rank 0 prints {case: {rank: traceback}} as JSON.

A case without a fault has an empty entry, and the first that has one is the last: the ranks may be out of step.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def names(module: str) -> list[str]:
    """Return the names of a module's cases, read from its source: torch and MPI stay with the ranks."""
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in found if name.startswith("test_")]


def fault(case: Callable[[Any], None], comm: Any) -> str | None:
    """Return the traceback of a case that fails on this rank."""
    try:
        case(comm)
    except Exception:
        return traceback.format_exc(limit=-4)
    return None


def main() -> None:
    """Run as one rank."""
    from mpi4py import MPI

    comm, report = MPI.COMM_WORLD, {}
    module = importlib.import_module(sys.argv[1])
    for name in names(sys.argv[1]):
        faults = comm.allgather(fault(getattr(module, name), comm))
        report[name] = {rank: each for rank, each in enumerate(faults) if each}
        if report[name]:
            break
    if comm.rank == 0:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
