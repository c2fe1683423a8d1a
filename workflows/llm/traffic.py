"""Messages and bytes of a training step by axis, as `mpi_ops.counters` counts them: each operation that a rank starts,
and what it hands to it. Arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Callable

from mpi_ops.schedule import Action
from workflows.llm.config import ModelConfig
from workflows.llm.share import Shapes, Share, elements, is_expert, shard_elements, stage_shapes
from workflows.workflow import Traffic

BUCKET_BYTES = 4 << 20
"""As in mpi_ops.gradient_buckets, which needs torch."""


def traffic(share: Share, place: int, gradient: int, stream: int, inner: int) -> dict[str, Traffic]:
    """Return what a rank at a place of the pipeline sends in a step, by axis; an axis of one rank is left out.

    `gradient`, `stream` and `inner` are the bytes of a number in a gradient, in the residual stream, and in what
    matrices take and give. `data` is dp x cp, the ranks with the same weights, or those that share out one replica of
    them; `replicas` are the ranks with the same shards, `experts` those with the same experts. What goes over `ep` is
    that of level loads.
    """
    layout, shapes = share.layout, share.shapes(place)
    found = {
        "tp": _tensor(share, place, shapes, gradient, stream, inner) if layout.tp > 1 else None,
        "cp": _context(share, place, inner) if layout.cp > 1 else None,
        "pp": _pipeline(share, place, stream) if layout.pp > 1 else None,
        "ends": _ends(share, place, shapes, gradient),
        "ep": _experts(share, place, stream, inner) if layout.ep > 1 else None,
        "experts": _copies(share, place, shapes, gradient) if share.data_ranks > layout.ep > 1 else None,
        "data": _data(share, place, shapes, gradient) if share.data_ranks > 1 else None,
        "replicas": _replicas(share, shapes, gradient) if layout.replicas > 1 else None,
        "all": Traffic(1, 16 + _loads(share.config.model)) if share.ranks > 1 else None,
    }
    return {axis: sent for axis, sent in found.items() if sent is not None}


def _tensor(share: Share, place: int, shapes: Shapes, gradient: int, stream: int, inner: int) -> Traffic:
    """For each pair of matrices and direction an all-gather and a reduce-scatter of the stream.

    Computing a block again repeats all but the last of its four, since nothing needs that one's result. The first
    stage shares out the embedded tokens, the last one gathers the head's input; the loss gathers two numbers a
    token; and a step ends with one sum of all parameters that are not split.
    """
    model, tp, times = share.config.model, share.layout.tp, share.microbatches
    whole = share.tokens * model.width
    gather, reduce = whole // tp, whole
    again = share.config.parallel.recompute == "full"
    layers = sum(len(share.layers[stage]) for stage in share.placement[place])
    forward = Traffic(2, gather * stream + reduce * inner)
    backward = Traffic(2, gather * inner + reduce * stream)
    block = forward + backward
    if not model.experts:  # whose tokens stay where they are
        block = block.times(2) + (Traffic(1, gather * stream) if again else Traffic(0, 0))
    block += forward if again else Traffic(0, 0)
    step = block.times(layers * times)
    if 0 in share.placement[place]:
        step += Traffic(2, (reduce + gather) * stream).times(times)
    if share.last_stage in share.placement[place]:
        step += Traffic(3, (gather + reduce) * stream + 2 * share.tokens * max(4, inner)).times(times)
    return step + Traffic(1, elements({n: s for n, s in shapes.items() if not _is_split(n)}) * gradient)


def _is_split(name: str) -> bool:
    whole = ("norm.weight", "norm.bias", "positions.weight", "wo.bias", "down.bias", "router.weight")
    return not name.endswith(whole) and not is_expert(name)


def _experts(share: Share, place: int, stream: int, inner: int) -> Traffic:
    """For each layer how many rows go to each expert, the rows there and back, and their gradients there and back."""
    model, times = share.config.model, share.microbatches
    layers = sum(len(share.layers[stage]) for stage in share.placement[place])
    rows = Traffic(2, share.expert_rows * model.width * (stream + inner))
    forward = rows + Traffic(1, 8 * model.experts)
    again = forward if share.config.parallel.recompute == "full" else Traffic(0, 0)
    return (forward + again + rows).times(layers * times)


def _copies(share: Share, place: int, shapes: Shapes, gradient: int) -> Traffic:
    """One all-reduce of the experts' gradients in buckets; with ZeRO one message for the experts of each block."""
    experts = {name: shape for name, shape in shapes.items() if is_expert(name)}
    if share.config.parallel.zero == 0:
        return Traffic(_buckets(experts, gradient), elements(experts) * gradient)
    return _sharded(share, place, gradient, share.expert_shards, is_expert)


def _loads(model: ModelConfig) -> int:
    """Return the bytes that say how many tokens each expert of each layer got, and how many found no room."""
    return 8 * model.layers * (model.experts + 1) if model.experts else 0


def _context(share: Share, place: int, inner: int) -> Traffic:
    """For each layer keys and values round the ring, all but the last hop forward, but two backward, and gradients."""
    model, cp, tp = share.config.model, share.layout.cp, share.layout.tp
    layers = sum(len(share.layers[stage]) for stage in share.placement[place])
    numbers = 2 * share.tokens * model.key_heads * model.head_width // tp
    forward = Traffic(cp - 1, (cp - 1) * numbers * inner)
    backward = Traffic(2 * cp - 3, numbers * ((cp - 2) * inner + (cp - 1) * max(4, inner)))
    again = Traffic(0, 0) if share.config.parallel.recompute == "none" else forward
    return (forward + again + backward).times(layers * share.microbatches)


def _pipeline(share: Share, place: int, stream: int) -> Traffic:
    """For each microbatch the stream to the next stage and its gradient to the one before, unless they are here."""
    here = set(share.placement[place])
    away = sum((stage < share.last_stage and stage + 1 not in here) for stage in here)
    away += sum((stage > 0 and stage - 1 not in here) for stage in here)
    size = share.tokens * share.config.model.width * stream // share.layout.tp
    return Traffic(away, away * size).times(share.microbatches)


def _ends(share: Share, place: int, shapes: Shapes, gradient: int) -> Traffic | None:
    """One sum of the tied weights' gradient between the pipeline's ends."""
    ends = {0, share.last_stage}
    apart = len(ends) == 2 and not any(ends <= set(held) for held in share.placement)
    if not (share.config.model.tied_head and apart and ends & set(share.placement[place])):
        return None
    rows, width = shapes["embedding.weight"]
    shards = share.shards if share.config.parallel.zero else 1
    return Traffic(1, -(-rows // shards) * width * gradient)


def _data(share: Share, place: int, shapes: Shapes, gradient: int) -> Traffic:
    """One all-reduce of the gradients in buckets; with ZeRO one message for each block and one for the rest."""

    def travels(name: str) -> bool:
        return share.layout.ep == 1 or not is_expert(name)

    shapes = {name: shape for name, shape in shapes.items() if travels(name)}
    if share.config.parallel.zero == 0:
        return Traffic(_buckets(shapes, gradient), elements(shapes) * gradient)
    return _sharded(share, place, gradient, share.shards, travels)


def _sharded(share: Share, place: int, gradient: int, shards: int, travels: Callable[[str], bool]) -> Traffic:
    """What ZeRO sends of the parameters whose names travel, between so many ranks: all-gathers and reduce-scatters."""
    sent = Traffic(0, 0)
    for stage in share.placement[place]:
        gathers, reductions = _uses(share.actions(place), stage, share.config.parallel.zero)
        held = stage_shapes(share.config.model, share.layers[stage], share.layout.tp, share.layout.ep)
        held = {name: shape for name, shape in held.items() if travels(name)}
        for part in _parts(held, share.layers[stage]):
            own = shard_elements(part, shards)
            sent += Traffic(gathers, gathers * own * gradient)
            sent += Traffic(reductions, reductions * own * shards * gradient)
    return sent


def _replicas(share: Share, shapes: Shapes, gradient: int) -> Traffic:
    """One all-reduce of each gradient's shard."""
    return Traffic(len(shapes), share.own_elements(shapes) * gradient)


def _uses(actions: list[Action], stage: int, zero: int) -> tuple[int, int]:
    """Return how often a stage's weights are gathered and its gradients reduced in a step."""
    gathered, gathers, backwards = False, 0, 0
    for action in actions:
        if action.stage != stage or action.kind == "W":
            continue
        gathers += not gathered
        gathered = zero == 1 or (zero == 2 and action.kind == "F")
        backwards += action.kind != "F"
    return gathers, 1 if zero == 1 else backwards


def _parts(shapes: Shapes, layers: range) -> list[list[tuple[int, ...]]]:
    """Return the parameters that travel together: those of each block, and all others of the stage."""
    blocks = [[s for name, s in shapes.items() if name.startswith(f"blocks.{layer}.")] for layer in layers]
    rest = [shape for name, shape in shapes.items() if not name.startswith("blocks.")]
    return [part for part in (*blocks, rest) if part]


def _buckets(shapes: Shapes, gradient: int) -> int:
    """Return the number of messages: parameters from the last to the first, in buckets that are not overfull."""
    buckets, filled = 0, 0
    for shape in reversed(list(shapes.values())):
        size = math.prod(shape) * gradient
        if not buckets or filled + size > BUCKET_BYTES:
            buckets, filled = buckets + 1, 0
        filled += size
    return buckets
