"""How much memory a rank needs to begin: cases on four ranks, functions `test_*(comm)`; test_draw.py starts them."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from mpi4py import MPI  # isort: skip  (MPI comes before torch)

from mpi_ops.process_group import destroy_process_group, init_process_group
from workflows.llm.config import LlmConfig
from workflows.llm.parallelize import ParallelModel
from workflows.llm.ranks import layout_of

MODEL = {"width": 768, "layers": 2, "ffn_width": 2048, "vocab_size": 8192, "seq_len": 64}


def held_bytes(what: str) -> int:
    """Return what /proc says that this process has in memory: VmRSS now, VmHWM at most since `forget_peak`."""
    [line] = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(what)]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what earlier cases have let go of would be found again
    Path("/proc/self/clear_refs").write_text("5")


def built(comm: MPI.Intracomm, model: dict, parallel: dict) -> ParallelModel:
    config = LlmConfig(
        model=model,
        train={"steps": 1, "global_batch": 4, "dtype": "fp64"},
        parallel={"microbatch": 1, **parallel},
    )
    made = ParallelModel(config, layout_of(config, comm.size))
    made.draw()
    return made


def begins_in_little_memory(comm: MPI.Intracomm, model: dict, parallel: dict) -> None:
    """Fail if building a rank's part needs much more than its weights and the buffers of their gradients."""
    init_process_group(comm, "mpi4py", 60)
    large = {**MODEL, **model}
    built(comm, {**large, "width": 64, "vocab_size": 257, "ffn_width": 64}, parallel)  # loads what is used
    forget_peak()
    before = held_bytes("VmRSS")
    made = built(comm, large, parallel)
    peak = held_bytes("VmHWM") - before
    whole, own = 8 * made.config.model.parameters()[0], sum(p.nbytes for p in made.parameters().values())
    gradients = 0 if parallel.get("zero") else own
    destroy_process_group(comm)
    assert own < 0.4 * whole
    assert own <= peak < own + gradients + whole / 8, f"{peak:,} of {whole:,}, {own:,} kept"


def test_a_slice_of_every_matrix(comm: MPI.Intracomm) -> None:
    begins_in_little_memory(comm, {}, {"tp": 4})


def test_a_quarter_of_the_experts(comm: MPI.Intracomm) -> None:
    begins_in_little_memory(
        comm, {"experts": 8, "ffn_width": 1024, "layers": 1, "vocab_size": 257}, {"ep": 4}
    )


def test_no_compiler_is_loaded_without_a_need(comm: MPI.Intracomm) -> None:
    """Which costs every rank more than a second: here, what some operations on tensors without memory do."""
    assert not {"torch._dynamo", "sympy"} & sys.modules.keys()


def test_a_quarter_of_the_rows(comm: MPI.Intracomm) -> None:
    import workflows.llm.zero  # noqa: F401  (whose compiler is no part of a model)

    begins_in_little_memory(comm, {}, {"zero": 3})
