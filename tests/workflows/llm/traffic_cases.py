"""Run by mpiexec: a step of each layout on the command line (JSON); prints what each rank's counters and autograd say.

Usage: traffic_cases.py CONFIGURATIONS
"""

from __future__ import annotations

import json
import sys

from mpi4py import MPI  # isort: skip  (MPI comes before torch)
import torch

from mpi_ops import counters
from mpi_ops.layout import ParallelLayout
from mpi_ops.process_group import destroy_process_group, init_process_group
from workflows.llm.config import LlmConfig
from workflows.llm.parallelize import ParallelModel
from workflows.llm.share import Share

AXES = ("tp", "cp", "pp", "ends", "ep", "experts", "data", "replicas")


def counted(config: LlmConfig, layout: ParallelLayout) -> dict:
    """Return {axis: (messages, bytes)} of one step, and this rank's place and number of parameters."""
    model = ParallelModel(config, layout)
    model.draw()
    rows = torch.randint(256, (config.train.global_batch // layout.dp, config.model.seq_len + 1))
    counters.reset()
    model.backward(rows[:, :-1], rows[:, 1:])
    sent: dict[str, tuple[int, int]] = {}
    for each in counters.snapshot():
        axis = each.group if each.group in AXES else "all"
        if each.op not in ("recv", "irecv"):
            messages, sent_bytes = sent.get(axis, (0, 0))
            sent[axis] = messages + each.calls, sent_bytes + each.sent_bytes
    parameters = sum(part.numel() for part in model.parameters().values())
    return {"place": model.mesh.place("pp"), "sent": sent, "parameters": parameters}


def kept_bytes(config: LlmConfig, layout: ParallelLayout) -> int:
    """Return the floating-point memory that autograd keeps on this rank in a step of one microbatch."""
    one = config.train.model_copy(update={"global_batch": layout.dp})
    model = ParallelModel(config.model_copy(update={"train": one}), layout)
    model.draw()
    known = {
        tensor.untyped_storage().data_ptr()
        for stage in model.stages.values()
        for tensor in (*stage.parameters(), *stage.buffers())
    }
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim and tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    row = torch.zeros((1, config.model.seq_len), dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.backward(row, row)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def main() -> None:
    """Run every case and print one JSON list: for each case, for each rank, what was counted."""
    comm = MPI.COMM_WORLD
    init_process_group(comm, "mpi4py", 60.0)
    found = []
    for case in json.loads(sys.argv[1]):
        config = LlmConfig.model_validate(case)
        layout = Share(config, comm.size).layout
        kept = None if config.parallel.zero else kept_bytes(config, layout)
        found.append(comm.gather({**counted(config, layout), "kept": kept}))
    if comm.rank == 0:
        print(json.dumps(found))
    destroy_process_group(comm)


if __name__ == "__main__":
    main()
