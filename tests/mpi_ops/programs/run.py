"""Run programs one after the other over a backend: `python -m mpi4py -m tests.mpi_ops.programs.run BACKEND PROGRAM ...`

Rank 0 prints, as JSON, {program: {variant: [losses of each rank]}}; "plain" is what one process without any
parallelism finds.
"""

from __future__ import annotations

import importlib
import json
import sys

from mpi4py import MPI  # isort: skip  (MPI comes before torch)
import torch.distributed as dist

from mpi_ops.process_group import destroy_process_group, init_process_group
from tests.mpi_ops.programs.model import train


def main() -> None:
    backend, *programs = sys.argv[1:]
    init_process_group(MPI.COMM_WORLD, backend, timeout_s=60)  # the one line that knows
    found = {"plain": {"plain": [train()]}}
    for name in programs:
        program = importlib.import_module(f"tests.mpi_ops.programs.{name}")
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, program.train())
        found[name] = {variant: [each[variant] for each in everyone] for variant in everyone[0]}
    if dist.get_rank() == 0:
        print(json.dumps(found))
    destroy_process_group(MPI.COMM_WORLD)


if __name__ == "__main__":
    main()
