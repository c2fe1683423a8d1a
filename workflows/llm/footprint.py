"""What a layout costs each rank in memory and messages, by arithmetic alone: no torch, no MPI.

At the peak a rank holds

    weights + gradients + moments + (bytes of a microbatch in flight) x (microbatches in flight) + transients

- Static: for each of the rank's parameters its weight, gradient, moments and, with mixed precision, the master copy.
  ZeRO-1 keeps moments, master and, between steps, gradients on one of its ranks only; during a step gradients are
  added up whole. ZeRO-2 shards gradients during the step as well, ZeRO-3 also weights.
- A microbatch in flight with `recompute: full`: the input of each of the stage's layers, and the stage's output, of
  which a tp rank keeps its own share until the gradient comes. Without: what autograd keeps of each block
  (`_block_bytes`), counted to the byte. `selective` keeps of attention queries, keys, values and what goes into the
  next matrix, once each. The last stage adds what its norm, head and loss keep. With `data.mask_documents` a stage
  keeps the rotary angles of a microbatch's own positions, the first stage of a GPT the positions themselves.
- In flight: most forwards without their backward in this rank's part of the schedule; min(m, p - k) in 1f1b.
- Transients while a block goes backward: what it kept or is computed again; the stream's gradient that came in; the
  gradients of two values of the feed-forward's inner width; and the gradient of its largest matrix before that
  is added to the others. In the last stage instead, where larger, two more tables as large as the logits; one,
  where tp ranks share the vocabulary.
- Experts count as if their loads were level (a rank's own grow with the tokens that come to it), and with a capacity
  as if they were full. Backward holds the gradients of all rows, going in and out, of one expert's two inner values,
  and of the three stacks of matrices, of which one twice.

Not counted: the copy of weights and moments that `train.async_checkpoint` holds while it writes; the MPI library and
its buffers, the allocator's gaps, Python, torch itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workflows.llm.config import LlmConfig
from workflows.llm.share import Shapes, Share, block_shapes, elements
from workflows.llm.traffic import traffic
from workflows.workflow import Footprint, RankFootprint


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a program keeps its numbers, in bytes each."""

    weight: int
    gradient: int
    moments: int
    """Both together."""
    stream: int
    """Of the residual stream between the matrices."""
    inner: int
    """Of what goes into the matrices and comes out of them."""
    master: int = 0
    """Of a copy of the weights that is updated in their place; 0 for none."""
    shares_tokens: bool = True
    """Whether tp ranks each keep a share of the stream (2205.05198), or all of it."""

    @property
    def casts(self) -> bool:
        """Whether matrices and their inputs are copied to a smaller type for each multiplication."""
        return self.inner < self.weight


_INDEX = 8
NUMERICS = {
    "fp32": Numerics(weight=4, gradient=4, moments=8, stream=4, inner=4),
    "fp64": Numerics(weight=8, gradient=8, moments=16, stream=8, inner=8),
    "bf16": Numerics(weight=4, gradient=4, moments=8, stream=4, inner=2),
}
"""Of this program, by train.dtype."""
MEGATRON_FP16 = Numerics(weight=2, gradient=2, moments=8, stream=2, inner=2, master=4, shares_tokens=False)
"""Of Megatron-DeepSpeed as run on Frontier (2312.12705): fp16 with fp32 master weights and moments."""


def footprint(config: LlmConfig, ranks: int, numerics: Numerics | None = None) -> Footprint:
    """Return what the layout of `config` costs on so many ranks, for each place of the pipeline.

    Ranks at one place differ by their share of the vocabulary alone; it is the largest that counts.
    """
    held = numerics or NUMERICS[config.train.dtype]
    share = Share(config, ranks)
    return Footprint(
        share.layout.degrees, tuple(_rank(share, held, place) for place in range(share.layout.pp))
    )


def static_bytes(parameters: int, numerics: Numerics, zero: int, own: int, between: bool = False) -> int:
    """Return the bytes of weights, gradients, moments and masters on a rank, in a step or `between` two.

    Of the parameters that it works with, `own` are in its shards.

    This program's own ZeRO updates the shards and gathers the weights from them for a step: until ZeRO-3 both are
    there at once, and in between the shards alone. With a master copy the gathered weights stay.
    """
    sharded = numerics.moments + numerics.master
    whole = numerics.weight + numerics.gradient
    if zero == 0 or own == parameters:
        return parameters * (whole + sharded)
    if not numerics.master:
        sharded += numerics.weight
        whole -= numerics.weight if between or zero == 3 else 0
    elif zero == 3:
        sharded, whole = sharded + numerics.weight, whole - numerics.weight
    if between or zero >= 2:
        sharded, whole = sharded + numerics.gradient, whole - numerics.gradient
    return parameters * whole + own * sharded


def _rank(share: Share, numerics: Numerics, place: int) -> RankFootprint:
    shapes, zero = share.shapes(place), share.config.parallel.zero
    held_bytes = {stage: activation_bytes(share, numerics, stage) for stage in share.placement[place]}
    in_flight = now = peak_bytes = now_bytes = 0
    for action in share.actions(place):
        if action.kind in "FBW":
            way = 1 if action.kind == "F" else -1
            now, now_bytes = now + way, now_bytes + way * held_bytes[action.stage]
            in_flight, peak_bytes = max(in_flight, now), max(peak_bytes, now_bytes)
    parameters, own = elements(shapes), share.own_elements(shapes)
    static = static_bytes(parameters, numerics, zero, own)
    transient = _transient_bytes(share, numerics, place, shapes)
    return RankFootprint(
        place=f"pp {place}",
        parameters=parameters,
        static_bytes=static,
        between_steps_bytes=static_bytes(parameters, numerics, zero, own, between=True),
        microbatch_bytes=max(held_bytes.values()),
        in_flight=in_flight,
        transient_bytes=transient,
        peak_bytes=static + peak_bytes + transient,
        traffic=traffic(share, place, numerics.gradient, numerics.stream, numerics.inner),
    )


def activation_bytes(share: Share, numerics: Numerics, stage: int) -> int:
    """Return what a stage keeps of one microbatch from its forward to its backward pass."""
    model, layers = share.config.model, share.layers[stage]
    tp, tokens = share.layout.tp, share.tokens
    stream = _stream_bytes(share, numerics)
    recompute = share.config.parallel.recompute
    kept = len(layers) * (stream if recompute == "full" else _block_bytes(share, numerics, recompute))
    if share.config.data.mask_documents and model.arch == "llama":
        kept += tokens * model.head_width * numerics.weight
    elif share.config.data.mask_documents and stage == 0:
        kept += tokens // tp * _INDEX
    if stage < share.last_stage:
        return kept + tokens * model.width * numerics.stream // tp
    vocabulary = -(-model.vocab_size // tp)
    a_token = vocabulary + (tp > 1)  # softmax, and what of it is this share's
    head = tokens * model.width * numerics.inner + tokens * a_token * max(4, numerics.inner)
    return kept + _norm_bytes(share, numerics) + head + _cast_bytes(share, numerics, vocabulary * model.width)


def _stream_bytes(share: Share, numerics: Numerics) -> int:
    """Return the residual stream of a microbatch, as far as a rank keeps it."""
    ranks = share.layout.tp if numerics.shares_tokens else 1
    return share.tokens * share.config.model.width * numerics.stream // ranks


def _norm_bytes(share: Share, numerics: Numerics) -> int:
    """Return what a norm keeps: its input and a mean and a deviation a token, or the normed input and a root."""
    gpt, width = share.config.model.arch == "gpt", share.config.model.width
    stream = _stream_bytes(share, numerics)
    return stream + 2 * stream // width if gpt else 2 * stream + stream // width


def _attention_bytes(share: Share, numerics: Numerics, recompute: str) -> int:
    """Return what autograd keeps of one block's attention for one microbatch.

    Per token: queries, keys, values, the attended values, twice where they are not laid out as the next matrix wants
    them, keys and values of the last block as well where they go round a ring; and a sum for each head. Where it is
    computed again: queries, keys, values and the next matrix's input.
    """
    model, tp, ring = share.config.model, share.layout.tp, share.layout.cp > 1
    alike = model.arch == "gpt" and not ring and not share.config.data.mask_documents
    query_copies, key_copies = 2 if alike else 3, 4 if ring else 2
    sums = model.heads // tp * max(4, numerics.inner)
    if recompute == "selective":
        query_copies, key_copies, sums = 2, 2, 0
    heads = (query_copies * model.heads + key_copies * model.key_heads) * model.head_width // tp
    return share.tokens * (heads * numerics.inner + sums)


def _block_bytes(share: Share, numerics: Numerics, recompute: str = "none") -> int:
    """Return what autograd keeps of one block for one microbatch.

    Per token: two norms; the input of each pair of matrices, gathered over tp, or where matrices cast one copy for
    each matrix it goes into; what attention keeps; and the inner values of the feed-forward part, or what experts
    keep.
    """
    model, tp = share.config.model, share.layout.tp
    gpt = model.arch == "gpt"
    inner = (3 if numerics.casts else 1) * model.width
    feed_forward = 0
    if not model.experts:
        inner += (2 if numerics.casts and not gpt else 1) * model.width + (2 if gpt else 4) * model.ffn // tp
    else:
        feed_forward = _expert_bytes(share, numerics)
    shapes = block_shapes(model, tp).items()
    matrices = sum(math.prod(s) for name, s in shapes if len(s) == 2 and "router" not in name)
    cast = _cast_bytes(share, numerics, matrices)
    tokens = share.tokens * inner * numerics.inner + _attention_bytes(share, numerics, recompute)
    return 2 * _norm_bytes(share, numerics) + tokens + feed_forward + cast


def _expert_bytes(share: Share, numerics: Numerics) -> int:
    """Return what a mixture of experts keeps of one microbatch.

    Per token: the router's input, the scores, and the chosen experts with their weights before they are scaled, and
    what scales them. Per row (a token at one of its experts): which it is, twice, and with experts elsewhere in
    which order it came and went, its weight, its input, four inner values, and what is made of it, weighted and not.
    """
    model, stream, inner = share.config.model, numerics.stream, numerics.inner
    scaled = (model.top_k + 1) * stream if model.top_k > 1 else 0
    a_token = (model.width + model.experts) * stream + scaled + model.top_k * _INDEX
    inputs = (2 if numerics.casts else 1) * model.width
    a_row = (inputs + 4 * model.ffn + model.width) * inner + (model.width + 1) * stream
    a_row += (4 if share.layout.ep > 1 else 2) * _INDEX
    stacks = 3 * model.experts // share.layout.ep * model.width * model.ffn
    cast = stacks * inner if numerics.casts else 0
    return share.tokens // share.layout.tp * a_token + share.expert_rows * a_row + cast


def _cast_bytes(share: Share, numerics: Numerics, weights: int) -> int:
    """Return the copies of weights in a smaller type, kept for backward unless that keeps the weights themselves."""
    return weights * numerics.inner if numerics.casts and not share.splits_backward else 0


def _transient_bytes(share: Share, numerics: Numerics, place: int, shapes: Shapes) -> int:
    """Return what a rank holds for a moment only, at most; each term is named in this module's text."""
    model, tp, zero = share.config.model, share.layout.tp, share.config.parallel.zero
    block = block_shapes(model, tp, share.layout.ep)
    largest = max(map(math.prod, block.values())) * numerics.gradient * (4 if model.experts else 1)
    if (
        zero >= 2 and share.shards > 1
    ):  # a block's gradients are whole until they are reduced, its weights while used
        largest += elements(block) * (numerics.gradient + (2 * numerics.weight if zero == 3 else 0))
    recompute = share.config.parallel.recompute
    recomputed = _block_bytes(share, numerics) if recompute == "full" else 0
    if recompute == "selective":
        recomputed = _attention_bytes(share, numerics, "none") - _attention_bytes(share, numerics, recompute)
    inner = share.tokens * model.ffn // tp
    if model.experts:
        inner = share.expert_rows * model.width + share.expert_rows // model.experts * model.ffn
    gradients = _stream_bytes(share, numerics) + 2 * inner * numerics.inner
    backward = recomputed + gradients + largest
    if share.last_stage not in share.placement[place]:
        return backward
    logits = share.tokens * -(-model.vocab_size // tp)
    name = "embedding.weight" if model.tied_head else "head.weight"
    head = math.prod(shapes[name]) * numerics.gradient
    tables = 2 if tp == 1 else 1
    return max(backward, tables * logits * max(4, numerics.inner) + head)
