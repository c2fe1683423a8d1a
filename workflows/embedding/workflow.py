"""What the embedding runs offer to studies."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from workflows.embedding.config import EmbedConfig, check_ranks, mathematics
from workflows.embedding.footprint import estimated_s, facts, footprint, size
from workflows.embedding.labels import read_labels
from workflows.errors import ConfigError
from workflows.workflow import Workflow


def prepare(config: EmbedConfig, cache_dir: Path) -> str:
    """Convert a matrix that ranks cannot read their share of, unless that was done, and say what is read."""
    from workflows.embedding.convert import CONVERTED, convert
    from workflows.embedding.ogb import prepare_task
    from workflows.embedding.survey import survey

    found = survey(config.graph)
    wanted = config.eval.classification
    labels = wanted.labels if wanted else ""
    task = config.eval.ogb
    regresses = (
        "classification" if wanted else "ogb" if task and task.metric in ("accuracy", "rocauc") else None
    )
    if regresses and not find_spec("sklearn"):
        raise ConfigError(f"eval.{regresses} needs scikit-learn: pip install scikit-learn")
    if config.graph.partition == "metis" and not find_spec("pymetis"):
        raise ConfigError("graph.partition=metis needs pymetis: pip install '.[locality]'")
    if config.graph.path and config.graph.kind in CONVERTED:
        convert(config.graph.path, cache_dir)
    if labels.endswith((".mat", ".npz")):
        convert(labels, cache_dir)
    if task:
        prepare_task(config.graph, task, found.nodes, cache_dir)
    if wanted:
        read_labels(
            wanted, cache_dir, found.nodes
        )  # whatever is wrong with them is said before a rank starts
    return (
        f"{config.graph.path or 'R-MAT'}: {found.nodes:,} nodes, {found.edges:,} edges, {found.nnz:,} entries"
    )


WORKFLOW = Workflow(
    name="embedding",
    description="network embedding on MPI ranks that share the rows of the graph",
    config=EmbedConfig,
    program="workflows.embedding.program",
    mathematics=mathematics,
    size=size,
    check_ranks=check_ranks,
    prepare=prepare,
    isoflop_keys=(("embedding", "dim"), ("embedding", "dim")),
    footprint=footprint,
    progress="power_s",
    facts=facts,
    estimated_s=estimated_s,
)
