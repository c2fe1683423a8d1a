"""Lays a layout over the model: which layers and which slices this rank holds, and how a step runs over all of them.

The model's own file knows nothing of this. Whatever the layout, a step is the same arithmetic: the loss is the mean
over the tokens of the global batch, and a gradient is that of this mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from mpi_ops.gradient_buckets import GradientBuckets
from mpi_ops.layout import AXES, Axis, ParallelLayout
from mpi_ops.mesh import make_mesh
from mpi_ops.pipeline import Pipeline, WeightGradients
from mpi_ops.ring_attention import ring_attention, zigzag
from mpi_ops.schedule import Action, placement, schedule
from mpi_ops.vocabulary import cross_entropy
from workflows.llm.config import LlmConfig
from workflows.llm.draw import draw, give_memory
from workflows.llm.expert_parallel import ExpertParallel
from workflows.llm.model import Transformer, loss
from workflows.llm.ranks import stage_layers
from workflows.llm.tensor_parallel import infer_rules, split

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Of weights, gradients and moments."""
TIED = "embedding.weight"
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Box:
    """Where a rank's part of a parameter lies in the whole, and who else holds the same part."""

    shape: tuple[int, ...]
    """Of the whole parameter."""
    offset: tuple[int, ...]
    """Of this rank's part."""
    copies: int
    """Ranks that hold this part."""
    first_copy: bool
    """Whether this rank is the one of them that saves it."""


class Whole(Protocol):
    """An array, in memory or on disk."""

    def __getitem__(self, where: Any) -> NDArray[Any]:
        """Return a part of it."""


class MissingGradientError(Exception):
    """A trained parameter got no gradient: some part of the step is not connected or was lost."""

    exit_code = 1


class ParallelModel:
    """One rank's part of the model under a layout. Every rank of the world makes one and calls the same methods.

    Its weights are no numbers until `draw`, `take_over` or a checkpoint sets them.

    Raises:
        LayoutError: the layout is not one of this world, or the model cannot be split so.
    """

    def __init__(self, config: LlmConfig, layout: ParallelLayout, device: torch.device = CPU) -> None:
        parallel = config.parallel
        self.device = device
        self.config, self.layout = config, layout
        self.mesh = make_mesh(layout, parallel.message_timeout_s)
        self.dtype = DTYPES[config.train.dtype]
        self._share = config.train.global_batch // layout.dp
        self._micro = parallel.microbatch or self._share
        chosen = parallel.schedule, layout.pp
        self._placement = placement(*chosen, parallel.stages_per_rank)
        self._schedule = schedule(*chosen, self._share // self._micro, parallel.stages_per_rank)
        splits_backward = any(action.kind == "W" for row in self._schedule for action in row)
        self._put_off = WeightGradients() if splits_backward else None
        layers = stage_layers(config.model, layout.pp * parallel.stages_per_rank)
        self.stages = {stage: self._stage(layers[stage]) for stage in self._placement[self.mesh.place("pp")]}
        whole_shapes = _shapes(self._find())
        self._splits: dict[str, tuple[int, int]] = {}
        for model in self.stages.values():
            self._splits |= self._split(model)
        self.experts = ExpertParallel(config.model, self.stages.values(), self.mesh)
        shared = self._tie_ends()
        self._sharded = bool(parallel.zero) and self.mesh.shards is not None
        rows: dict[str, int] = {}
        if self._sharded:
            from workflows.llm.zero import shard

            shards: Any = self.mesh.shards
            rows = shard(self.stages.values(), shards, parallel.zero, device, self.mesh.expert_shards)
        for model in self.stages.values():  # only now, when each weight is this rank's part of it
            give_memory(model, device)
            model.to(device)
        if not self._sharded:
            self._buckets = self._make_buckets(shared)
        self.consumed_tokens = 0
        """Tokens that the loss has taken on this rank in `backward`; all ranks together count each token once."""
        self._named = self._find()  # walking through the modules is too slow for every step
        self.boxes = {
            name: self._box(name, shape, self._splits.get(name), rows.get(name))
            for name, shape in (whole_shapes | _shapes(self.experts.biases())).items()
        }

    @property
    def pipeline_ranks(self) -> int:
        """Ranks that work on the same sequences."""
        return self.layout.pp * self.layout.cp * self.layout.tp

    def parameters(self) -> dict[str, Tensor]:
        """Return the memory of this rank's part of each parameter, by the parameter's name in the whole model."""
        return {name: _local(p.detach()) for name, p in self._named.items()}

    def state(self) -> dict[str, Tensor]:
        """Return the memory of what a step changes besides the parameters, whole, by its name in the whole model."""
        return self.experts.biases()

    def draw(self) -> None:
        """Set the parameters to those that one process would draw, of which only this rank's parts are kept."""
        for name, part in self.parameters().items():
            draw(part, name, self.config.train.seed, self.boxes[name].shape, self.boxes[name].offset)

    @torch.no_grad()
    def take_over(self, weights: Mapping[str, Whole]) -> None:
        """Set the parameters from those of the whole model, of which only this rank's parts are read."""
        for name, part in self.parameters().items():
            offset = self.boxes[name].offset
            where = tuple(slice(first, first + n) for first, n in zip(offset, part.shape, strict=True))
            part.copy_(torch.from_numpy(weights[name][where]))

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradient of each part, after `backward`.

        Raises:
            MissingGradientError: one got none; the sentence names it.
        """
        missing = (
            [name for name, p in self._named.items() if p.grad is None]
            if self._sharded
            else [name for buckets in self._buckets for name in buckets.missing()]
        )
        if missing:
            raise MissingGradientError(f"no gradient for {', '.join(missing)}")
        return {name: _local(p.grad) for name, p in self._named.items() if p.grad is not None}

    def backward(
        self, tokens_BL: Tensor, targets_BL: Tensor, positions_BL: Tensor | None = None
    ) -> tuple[float, float]:
        """Run forward and backward over this pipeline's sequences; return the global batch's mean loss and the
        gradient's norm, both the same on every rank. Gradients are then those of the mean, on every rank. With the
        tokens' positions in their documents, a token sees its own document only.

        Cost: what pipeline, tensor and context parallelism say, one reduction of the gradients over the ranks with
        the same weights, and one all-reduce over all ranks of two numbers and the loads of all experts.
        """
        self._forget()
        losses = self._run(self._schedule, tokens_BL, targets_BL, positions_BL, self._micro)
        if not self._sharded:
            for buckets in self._buckets:
                buckets.reduce()
        elif self.config.parallel.zero == 1:
            from workflows.llm.zero import reduce_shards

            reduce_shards(self.stages.values())
        gradients = self.gradients()
        if self._sharded and self.layout.ep > 1:
            # FSDP2 has taken the mean over the ranks with the same experts, of gradients of ep losses each.
            torch._foreach_div_([gradients[name] for name in self.experts.names], self.layout.ep)
        self._add_up_copies(gradients)
        norms = torch.stack(torch._foreach_norm(list(gradients.values()))).double()
        copies = torch.tensor([self.boxes[name].copies for name in gradients], device=self.device)
        squares = (norms.square() / copies).sum()
        replicas = self.layout.dp * self.layout.cp * self.layout.tp
        none = torch.zeros((), device=self.device)
        mean = torch.stack([*losses.values(), none]).double().sum() * self._micro / self._share
        totals = torch.cat(
            (torch.stack((mean / replicas, squares)), self.experts.take_loads().to(self.device))
        )
        if dist.get_world_size() > 1:
            dist.all_reduce(totals)
        self.experts.spread(totals[2:])
        return totals[0].item(), math.sqrt(totals[1].item())

    @torch.no_grad()
    def loss_sum(self, tokens_BL: Tensor, targets_BL: Tensor, positions_BL: Tensor | None = None) -> float:
        """Return this rank's part of the sum of the losses of the tokens; the parts of all ranks add up to it."""
        forward = [[Action("F", stage, 0) for stage in sorted(held)] for held in self._placement]
        losses = self._run(forward, tokens_BL, targets_BL, positions_BL, len(tokens_BL))
        if self._sharded:
            from workflows.llm.zero import let_go

            let_go(self.stages.values())
        return (
            sum(each.item() for each in losses.values()) * tokens_BL.numel() / self.layout.cp / self.layout.tp
        )

    def _make_buckets(self, uses: Mapping[str, int]) -> list[GradientBuckets]:
        """Return the buckets of all gradients, those of experts apart where others of the data ranks hold them.

        Of the dp x cp losses of a step, an expert that is shared over ep ranks has the gradients of ep losses added up,
        so the sum over its copies is that of all losses, as for all others.
        """
        held = self._find()
        if self.mesh.ep is None:
            return [GradientBuckets(held, self.mesh.data, uses)]
        experts = {name: p for name, p in held.items() if name in self.experts.names}
        others = {name: p for name, p in held.items() if name not in experts}
        return [
            GradientBuckets(others, self.mesh.data, uses),
            GradientBuckets(experts, self.mesh.experts),
        ]

    def _find(self) -> dict[str, nn.Parameter]:
        return {name: p for model in self.stages.values() for name, p in model.named_parameters()}

    def _stage(self, layers: range) -> Transformer:
        config = self.config
        model = Transformer(config.model, None, self.dtype, layers)
        model.recompute(config.parallel.recompute)
        if config.train.compile:
            for block in model.blocks.values():
                block.compile()
        if hasattr(model, "positions"):
            model.positions.share = self.mesh.place("tp")
        if self.mesh.cp is not None:
            model.see(self._positions())
            for block in model.blocks.values():
                block.attention.attend = partial(ring_attention, group=self.mesh.cp)
        return model

    def _positions(self) -> Tensor:
        return zigzag(self.config.model.seq_len, self.layout.cp, self.mesh.place("cp"))

    def _split(self, model: Transformer) -> dict[str, tuple[int, int]]:
        """Split one stage over tp; return (dimension, first) of each parameter that was split."""
        if self._put_off is not None:
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.forward = partial(_linear, self._put_off, module)  # type: ignore[method-assign]
        if self.mesh.tp is None:
            return {}
        rules = infer_rules({name: tuple(p.shape) for name, p in model.named_parameters()})
        return split(model, rules, self.mesh.tp, self.config.model.seq_len // self.layout.cp)

    def _tie_ends(self) -> dict[str, int]:
        """Let first and last stage share tied weights where a V-shaped pipeline puts both here; return their uses."""
        if (
            self._last_stage == 0
            or not self.config.model.tied_head
            or not {0, self._last_stage} <= set(self.stages)
        ):
            return {}
        first, last = self.stages[0], self.stages[self._last_stage]
        last.embedding.weight = last.head.weight = first.embedding.weight
        return {TIED: 2}

    def _box(
        self, name: str, shape: tuple[int, ...], tensor_split: tuple[int, int] | None, first_row: int | None
    ) -> Box:
        offset = [0] * len(shape)
        alike: list[Axis] = ["dp", "cp", "tp"]
        if tensor_split is not None:
            offset[tensor_split[0]] = tensor_split[1]
            alike.remove("tp")
        ep = self.layout.ep if name in self.experts.names else 1
        if ep > 1:
            offset[0] = self.mesh.expert_place * (shape[0] // ep)
        if first_row is not None:
            offset[0] += first_row
            alike, ep = [axis for axis in alike if axis == "tp"], 1
        copies = math.prod(self.layout.shape[AXES.index(axis)] for axis in alike) // ep
        first_copy = all(self.mesh.place(axis) < (ep if axis == "dp" else 1) for axis in alike)
        if first_row is not None:
            copies, first_copy = copies * self.layout.replicas, first_copy and self.mesh.replica == 0
        if name == TIED and self._has_two_ends():
            copies, first_copy = copies * 2, first_copy and 0 in self.stages
        return Box(shape, tuple(offset), copies, first_copy)

    def _has_two_ends(self) -> bool:
        """Whether tied weights stand on two ranks: the first stage's and the last stage's."""
        apart = not any({0, self._last_stage} <= set(held) for held in self._placement)
        return self.config.model.tied_head and apart

    @property
    def _last_stage(self) -> int:
        return self.layout.pp * self.config.parallel.stages_per_rank - 1

    def _forget(self) -> None:
        if self._sharded:
            for parameter in self._named.values():
                parameter.grad = None
        else:
            for buckets in self._buckets:
                buckets.clear(self._share // self._micro)

    def _run(
        self,
        actions: Sequence[Sequence[Action]],
        tokens_BL: Tensor,
        targets_BL: Tensor,
        positions_BL: Tensor | None,
        micro: int,
    ) -> dict[int, Tensor]:
        """Run actions of all ranks' stages over this pipeline's sequences; return the losses of its microbatches."""
        if self.mesh.cp is not None:
            positions_L = self._positions()
            tokens_BL, targets_BL = tokens_BL[:, positions_L], targets_BL[:, positions_L]
        tokens_BL, targets_BL = tokens_BL.to(self.device), targets_BL.to(self.device)
        positions_BL = None if positions_BL is None else positions_BL.to(self.device)
        length, width = tokens_BL.shape[1], self.config.model.width
        shape = (micro, length, width) if self.mesh.tp is None else (micro * length // self.layout.tp, width)
        last = self._last_stage

        def compute(stage: int, x: Tensor | None, microbatch: int) -> Tensor:
            rows = slice(microbatch * micro, (microbatch + 1) * micro)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.dtype == "bf16"):
                within = None if positions_BL is None else positions_BL[rows]
                y = self.stages[stage](tokens_BL[rows] if x is None else x, within)
            if stage != last:
                return y
            self._count(targets_BL[rows])
            return self._loss(y, targets_BL[rows])

        stages = {stage: partial(compute, stage) for stage in self.stages}
        # Buckets add up what ranks have, FSDP2 takes the mean.
        losses = 1 if self._sharded else self.layout.dp * self.layout.cp
        pipeline = Pipeline(
            stages,
            actions,
            self._placement,
            self.mesh.place("pp"),
            self.mesh.pp,
            shape,
            self.dtype,
            self.device,
            micro / len(tokens_BL) / losses,
            self._put_off,
        )
        return pipeline.run()

    def _count(self, targets_BL: Tensor) -> None:
        if torch.is_grad_enabled() and self.mesh.place("tp") == 0:  # the others see the same tokens
            self.consumed_tokens += targets_BL.numel()

    def _loss(self, logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
        if self.mesh.tp is None:
            return loss(logits_BLV.float() if logits_BLV.dtype is torch.bfloat16 else logits_BLV, targets_BL)
        first = self._splits[TIED if self.config.model.tied_head else "head.weight"][1]
        return cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), first, self.mesh.tp)

    def _add_up_copies(self, gradients: Mapping[str, Tensor]) -> None:
        """Sum the gradients of parts that ranks hold alike but have seen different tokens or uses of.

        Cost: one all-reduce over tp of all norms and biases, one over the pipeline's ends of the tied weights; with
        replicas one over them of each shard, all under way at once.
        """
        if self.mesh.replicas is not None:
            shards = list(gradients.values())
            for work in [dist.all_reduce(g, group=self.mesh.replicas, async_op=True) for g in shards]:
                work.wait()
            torch._foreach_div_(shards, self.layout.replicas)
        if self.mesh.tp is not None:
            _sum_together([g for name, g in gradients.items() if name not in self._splits], self.mesh.tp)
        if TIED in gradients and self._has_two_ends() and self.mesh.ends is not None:
            _sum_together([gradients[TIED]], self.mesh.ends)


def _linear(put_off: WeightGradients, module: nn.Linear, x: Tensor) -> Tensor:
    return put_off.linear(x, module.weight, module.bias)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's memory of a tensor that may be sharded (a DTensor)."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _sum_together(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Replace each tensor by its sum over the ranks, in one message."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
