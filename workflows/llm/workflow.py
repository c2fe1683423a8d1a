"""What the language-model runs offer to studies."""

from __future__ import annotations

from pathlib import Path

from workflows.llm.config import LlmConfig, mathematics, size
from workflows.llm.footprint import footprint
from workflows.llm.ranks import check_ranks
from workflows.workflow import Workflow


def prepare(config: LlmConfig, cache_dir: Path) -> str:
    """Write the token file that the runs share, unless it is there, and say what it holds."""
    from workflows.llm.data import prepare_tokens

    return str(prepare_tokens(config.data, config.model.vocab_size, cache_dir))


def idle_gpus(config: LlmConfig) -> str:
    """Return what keeps a run's tensors from GPUs, and what to set; empty when they live there."""
    backend = config.parallel.backend
    return (
        ""
        if backend == "nccl"
        else f"parallel.backend={backend} keeps tensors on CPUs; set base.parallel.backend=nccl"
    )


WORKFLOW = Workflow(
    name="llm",
    description="language-model training on MPI ranks",
    config=LlmConfig,
    program="workflows.llm.program",
    mathematics=mathematics,
    size=size,
    check_ranks=check_ranks,
    prepare=prepare,
    isoflop_keys=(("train", "flops"), ("model", "width")),
    footprint=footprint,
    idle_gpus=idle_gpus,
)
