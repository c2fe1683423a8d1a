"""What so many ranks make of a configuration: whether they can share it, in which layout, and whose layers are whose.

Arithmetic alone: no torch here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from mpi_ops.layout import ParallelLayout
from mpi_ops.schedule import placement
from workflows.llm.config import LlmConfig, ModelConfig


def check_ranks(config: LlmConfig, ranks: int) -> None:
    """Do nothing if so many ranks can share the work as `parallel` says.

    Raises:
        ValueError: something does not divide, or does not go together; the sentence names key and value.
    """
    parallel = config.parallel
    dp, left = divmod(ranks, parallel.tp * parallel.pp * parallel.cp)
    if left or not dp:
        raise ValueError(
            f"{ranks} ranks are no multiple of parallel.tp x pp x cp = {parallel.tp} x {parallel.pp} x {parallel.cp}"
        )
    for what, value, divisor, by in _divisions(config, dp):
        if value % divisor:
            raise ValueError(f"{what} = {value} is no multiple of {divisor}, which is {by}")
    layout_of(config, ranks)  # raises what is no layout
    for refusals in (_experts, _pipeline, _sharding, _compiled):
        for sentence in refusals(config):
            raise ValueError(sentence)
    if 1 < parallel.replicas == dp * parallel.cp:
        raise ValueError(
            f"parallel.replicas={parallel.replicas} of {dp} data-parallel ranks leaves zero={parallel.zero} nothing to "
            "share out; take fewer, or zero 0"
        )


def layout_of(config: LlmConfig, ranks: int) -> ParallelLayout:
    """Return the layout of so many ranks; those that tp, pp and cp leave share the batch."""
    parallel = config.parallel
    dp = ranks // (parallel.tp * parallel.pp * parallel.cp)
    return ParallelLayout(
        dp,
        pp=parallel.pp,
        cp=parallel.cp,
        tp=parallel.tp,
        ep=parallel.ep,
        replicas=parallel.replicas,
        order=parallel.order,
    )


def stage_layers(model: ModelConfig, stages: int) -> list[range]:
    """Return the layers of each stage: the last one, which has the head as well, gets fewer where this evens out."""
    block = model.block_matmul_parameters() + 2 * model.seq_len * model.width
    head = model.vocab_size * model.width

    def slowest(last: int) -> float:
        others = math.ceil((model.layers - last) / max(1, stages - 1)) if stages > 1 else 0
        return max(others * block, last * block + head)

    last = (
        min(range(1, model.layers - stages + 2), key=lambda n: (slowest(n), n))
        if stages > 1
        else model.layers
    )
    ends = [(model.layers - last) * stage // max(1, stages - 1) for stage in range(stages)] + [model.layers]
    return [range(ends[stage], ends[stage + 1]) for stage in range(stages)]


def _divisions(config: LlmConfig, dp: int) -> Iterator[tuple[str, int, int, str]]:
    """Yield what must divide by what: (name, value, divisor, the divisor's name)."""
    parallel, model = config.parallel, config.model
    micro = parallel.microbatch or 1
    by = f"{dp} data-parallel ranks x microbatch {micro}"
    yield "train.global_batch", config.train.global_batch, dp * micro, by
    yield "the query heads, model.width / model.head_width", model.heads, parallel.tp, "parallel.tp"
    yield "model.kv_heads", model.key_heads, parallel.tp, "parallel.tp"
    if model.experts:
        yield "model.experts", model.experts, parallel.ep, "parallel.ep"
    else:
        yield "model.ffn_width", model.ffn, parallel.tp, "parallel.tp"
    if parallel.cp > 1:
        yield "model.seq_len", model.seq_len, 2 * parallel.cp, "2 parallel.cp"
    yield "model.seq_len / parallel.cp", model.seq_len // parallel.cp, parallel.tp, "parallel.tp"


def _experts(config: LlmConfig) -> Iterator[str]:
    parallel, model = config.parallel, config.model
    if parallel.ep > 1 and not model.experts:
        yield f"parallel.ep={parallel.ep}: there are no experts to share; set model.experts"
    if parallel.ep > 1 and parallel.replicas > 1:
        yield f"parallel.ep={parallel.ep} with replicas={parallel.replicas}: take one of them"
    if not model.experts or model.capacity is None:
        return
    if config.data.mask_documents:
        yield (
            f"data.mask_documents=true with model.capacity={model.capacity}: experts' room is a sequence's, which its "
            "documents would share; take no capacity"
        )
    if parallel.cp * parallel.tp > 1:
        yield (
            f"model.capacity={model.capacity} with parallel.cp x tp = {parallel.cp} x {parallel.tp}: an expert's room "
            "is counted over whole sequences, which no rank has then; take both as 1, or no capacity"
        )


def _pipeline(config: LlmConfig) -> Iterator[str]:
    parallel, model = config.parallel, config.model
    stages = parallel.pp * parallel.stages_per_rank
    if model.layers < stages:
        yield f"model.layers={model.layers}: {stages} pipeline stages need a layer each"
    placement(parallel.schedule, parallel.pp, parallel.stages_per_rank)  # raises what it does not take


def _sharding(config: LlmConfig) -> Iterator[str]:
    parallel, model = config.parallel, config.model
    if parallel.replicas > 1 and not parallel.zero:
        yield (
            f"parallel.replicas={parallel.replicas} with zero=0, where every rank holds a whole copy; take zero 1 to 3"
        )
    if parallel.zero > 1 and _puts_off(config):
        yield (
            f"parallel.zero={parallel.zero} with schedule {parallel.schedule}, which puts off gradients of weights: "
            "they would be shared out before they are there; take zero 0 or 1"
        )
    held = placement(parallel.schedule, parallel.pp, parallel.stages_per_rank)
    stages = parallel.pp * parallel.stages_per_rank
    together = stages > 1 and any({0, stages - 1} <= set(row) for row in held)
    if parallel.zero and model.tied_head and together:
        yield (
            f"parallel.zero={parallel.zero} with schedule {parallel.schedule}, whose first and last stage share a "
            "rank: tied weights would be sharded twice; take zero 0 or model.tied_head: false"
        )


def _compiled(config: LlmConfig) -> Iterator[str]:
    parallel = config.parallel
    if not config.train.compile:
        return
    works: tuple[tuple[str, object, object], ...] = (
        ("parallel.tp", parallel.tp, 1),
        ("parallel.cp", parallel.cp, 1),
        ("parallel.zero", parallel.zero, 0),
        ("parallel.recompute", parallel.recompute, "none"),
        ("data.mask_documents", config.data.mask_documents, False),
        ("model.experts", config.model.experts, 0),
    )
    for key, chosen, only in works:
        if chosen != only:
            yield f"train.compile=true with {key}={chosen}: a block is compiled with {only} only"
    if _puts_off(config):
        yield f"train.compile=true with schedule {parallel.schedule}, which puts off gradients of weights; take another"


def _puts_off(config: LlmConfig) -> bool:
    """Whether the schedule splits backward passes, so that gradients of weights come later."""
    return config.parallel.schedule in ("zero_bubble", "zbv", "dualpipev")
