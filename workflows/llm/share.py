"""What one rank works on under a layout: its parameters by shape, its tokens, its actions. Arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from mpi_ops.layout import ParallelLayout
from mpi_ops.schedule import Action, placement, schedule
from workflows.llm.config import LlmConfig, ModelConfig
from workflows.llm.ranks import layout_of, stage_layers

Shapes = dict[str, tuple[int, ...]]
"""Parameter name -> shape, in the order of the model."""


def block_shapes(model: ModelConfig, tp: int, ep: int = 1) -> Shapes:
    """Return the shapes of one block's parameters on each of `tp` ranks that hold one of `ep` shares of the experts.

    The first matrices of a pair are split by outputs and so are their biases; the last ones are split by inputs,
    their biases and all norms are whole. Experts are whole, and so is their router.
    """
    width, ffn, biases = model.width, model.ffn // tp, model.arch == "gpt"
    heads, key_heads = (n * model.head_width // tp for n in (model.heads, model.key_heads))

    def linear(name: str, rows: int, columns: int) -> Shapes:
        return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if biases else {})}

    return {
        **_norm(model, "attention_norm"),
        **linear("attention.wq", heads, width),
        **linear("attention.wk", key_heads, width),
        **linear("attention.wv", key_heads, width),
        **linear("attention.wo", width, heads),
        **_norm(model, "ffn_norm"),
        **(
            _expert_shapes(model, ep)
            if model.experts
            else {
                **({} if biases else linear("ffn.gate", ffn, width)),
                **linear("ffn.up", ffn, width),
                **linear("ffn.down", width, ffn),
            }
        ),
    }


def _expert_shapes(model: ModelConfig, ep: int) -> Shapes:
    inner, outer = (
        (model.experts // ep, model.ffn, model.width),
        (model.experts // ep, model.width, model.ffn),
    )
    return {
        "ffn.router.weight": (model.experts, model.width),
        "ffn.experts.gate": inner,
        "ffn.experts.up": inner,
        "ffn.experts.down": outer,
    }


def stage_shapes(model: ModelConfig, layers: range, tp: int, ep: int = 1) -> Shapes:
    """Return the shapes of a stage's parameters on the first of `tp` ranks, which has most of the vocabulary."""
    vocabulary = (-(-model.vocab_size // tp), model.width)
    first, last = layers.start == 0, layers.stop == model.layers
    shapes: Shapes = {}
    if first or (last and model.tied_head):
        shapes["embedding.weight"] = vocabulary
    if first and model.arch == "gpt":
        shapes["positions.weight"] = (model.seq_len, model.width)
    block = block_shapes(model, tp, ep)
    for layer in layers:
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    if last:
        shapes |= _norm(model, "norm")
        if not model.tied_head:
            shapes["head.weight"] = vocabulary
    return shapes


def elements(shapes: Shapes) -> int:
    """Return how many numbers the parameters are."""
    return sum(map(math.prod, shapes.values()))


def is_expert(name: str) -> bool:
    """Return whether a parameter is a stack of experts."""
    return ".experts." in name


def shard_elements(shapes: Iterable[tuple[int, ...]], shards: int) -> int:
    """Return how many numbers of the parameters the first of so many ranks holds, which share out the rows of each."""
    return sum(-(-shape[0] // shards) * math.prod(shape[1:]) for shape in shapes)


def _norm(model: ModelConfig, name: str) -> Shapes:
    kinds = ("weight", "bias") if model.arch == "gpt" else ("weight",)
    return {f"{name}.{kind}": (model.width,) for kind in kinds}


@dataclass(frozen=True)
class Share:
    """What a configuration gives each of so many ranks to do."""

    config: LlmConfig
    ranks: int

    @cached_property
    def layout(self) -> ParallelLayout:
        """Degrees of all axes."""
        return layout_of(self.config, self.ranks)

    @property
    def data_ranks(self) -> int:
        """Ranks with the same weights that see other tokens: gradients are summed over them."""
        return self.layout.dp * self.layout.cp

    @property
    def shards(self) -> int:
        """Ranks that share out what ZeRO shards."""
        return self.data_ranks // self.layout.replicas

    @property
    def expert_shards(self) -> int:
        """Ranks that share out the same experts."""
        return self.shards // self.layout.ep

    def own_elements(self, shapes: Shapes) -> int:
        """Return how many numbers of the parameters a rank holds in ZeRO's shards."""
        apart = {name for name in shapes if self.layout.ep > 1 and is_expert(name)}
        experts = shard_elements([shapes[name] for name in apart], self.expert_shards)
        return experts + shard_elements([s for name, s in shapes.items() if name not in apart], self.shards)

    @property
    def microbatch(self) -> int:
        """Sequences handled at once."""
        return self.config.parallel.microbatch or self.config.train.global_batch // self.layout.dp

    @property
    def microbatches(self) -> int:
        """Microbatches a step of each pipeline."""
        return self.config.train.global_batch // self.layout.dp // self.microbatch

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch on each cp rank; tp ranks see all of them."""
        return self.microbatch * self.config.model.seq_len // self.layout.cp

    @property
    def expert_rows(self) -> int:
        """Pairs of a token of a microbatch and one of its experts: what a rank sends, and gets if loads are level."""
        model = self.config.model
        chosen = self.tokens // self.layout.tp * model.top_k
        if model.capacity is None:
            return chosen
        room = math.ceil(model.capacity * model.seq_len * model.top_k / model.experts)
        return min(chosen, self.microbatch * model.experts * room)

    @cached_property
    def layers(self) -> list[range]:
        """Layers of each stage."""
        return stage_layers(self.config.model, self.layout.pp * self.config.parallel.stages_per_rank)

    @cached_property
    def placement(self) -> list[list[int]]:
        """Stages of each pipeline rank."""
        parallel = self.config.parallel
        return placement(parallel.schedule, parallel.pp, parallel.stages_per_rank)

    def actions(self, place: int) -> list[Action]:
        """Return what the pipeline rank at `place` does in a step, in order."""
        parallel = self.config.parallel
        return _schedule(parallel.schedule, parallel.pp, self.microbatches, parallel.stages_per_rank)[place]

    @cached_property
    def splits_backward(self) -> bool:
        """Whether the schedule puts off the gradients of weights."""
        return any(action.kind == "W" for action in self.actions(0))

    def shapes(self, place: int) -> Shapes:
        """Return the parameters of a pipeline rank; where it holds both ends, tied weights are there once."""
        held: Shapes = {}
        for stage in self.placement[place]:
            held |= stage_shapes(self.config.model, self.layers[stage], self.layout.tp, self.layout.ep)
        return held

    @property
    def last_stage(self) -> int:
        """Number of the stage with the head."""
        return len(self.layers) - 1


@lru_cache(maxsize=8)
def _schedule(name: str, ranks: int, microbatches: int, stages_per_rank: int) -> list[list[Action]]:
    return schedule(name, ranks, microbatches, stages_per_rank)
