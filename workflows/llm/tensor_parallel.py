"""Tensor parallelism laid over a model that knows nothing of it: which parameter is split how, and where ranks meet.

Two rules place the parameters of any Llama- or GPT-like module by name and shape (Redco, 2310.16355): what is known
by its role goes where Megatron puts it, and of the rest every second matrix is split along its input. Between the
pairs of matrices each rank holds a share of the tokens only (sequence parallelism, 2205.05198): a pair gathers
the tokens on entry and adds up and shares out its result on exit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpi_ops.collectives import gather, reduce_scatter
from mpi_ops.errors import LayoutError
from mpi_ops.vocabulary import partial_lookup, vocabulary_share

OUT, IN = 0, 1
"""Dimensions of a weight as torch keeps it, (out, in)."""
Rules = dict[str, int | None]
"""Parameter name -> the dimension it is split along, None for a copy on every rank."""

_VOCABULARY = re.compile(
    r"embedding|embed_tokens|embed_in|wte|tok_embeddings|shared|head|lm_head|embed_out|output"
)
_FIRST = re.compile(
    r"w?[qkv]|[qkv]_proj|query|key|value|gate(_proj)?|up(_proj)?|w[13]|wi(_[01])?|fc1|fc_in|c_fc|dense_h_to_4h"
)
_LAST = re.compile(r"w?o|[o]_proj|out_proj|down(_proj)?|w2|fc2|fc_out|c_proj|dense|dense_4h_to_h")


def infer_rules(shapes: Mapping[str, Iterable[int]]) -> Rules:
    """Return how each parameter is split, from names and shapes alone.

    A parameter's role is the last part of its module's name. Matrices of unknown role alternate, along the output
    then along the input, within each module that holds them. Biases follow the output of their matrix; norms and
    whatever else has one dimension stay whole.
    """
    rules: Rules = {}
    previous: dict[str, int | None] = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        parent, _, role = module.rpartition(".")
        if len(tuple(shape)) == 2 and kind == "weight":
            if _VOCABULARY.fullmatch(role) or _FIRST.fullmatch(role):
                rules[name] = OUT
            elif _LAST.fullmatch(role):
                rules[name] = IN
            elif "pos" in role or role in ("wpe", "router"):
                rules[name] = None
            else:
                rules[name] = IN if previous.get(parent) == OUT else OUT
            previous[parent] = rules[name]
        else:
            rules[name] = OUT if kind == "bias" and rules.get(f"{module}.weight") == OUT else None
    return rules


def split(
    model: nn.Module, rules: Rules, group: dist.ProcessGroup, length: int
) -> dict[str, tuple[int, int]]:
    """Replace every split parameter by this rank's share and make the modules meet.

    `length` is the tokens a sequence on this rank. A vocabulary may be split unevenly. Returned are the split
    dimension and the first place of the share in it, by parameter. All that is not in there every rank holds whole,
    and since it has seen a share of the tokens only, its gradient is to be summed over the group.

    Raises:
        LayoutError: a dimension that does not divide by the ranks.

    Cost: for each pair of matrices one all-gather and one reduce-scatter of the activations forward, and the same
    backward.
    """
    ranks, rank = group.size(), group.rank()
    shares: dict[str, tuple[int, int]] = {}
    placed: dict[int, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        dim = rules[name]
        if dim is None:
            continue
        whole = parameter.shape[dim]
        uneven = _VOCABULARY.fullmatch(name.split(".")[-2])
        if whole % ranks and not uneven:
            raise LayoutError(
                f"{name}: {whole} rows or columns cannot be shared equally by parallel.tp={ranks}"
            )
        first, end = vocabulary_share(whole, ranks, rank)
        share = parameter.data.narrow(dim, first, end - first)
        parameter.data = share.clone(memory_format=torch.contiguous_format)
        shares[name] = placed[id(parameter)] = dim, first
    for module in model.modules():
        _meet(module, placed, group, length)
    return shares


def _meet(
    module: nn.Module, placed: Mapping[int, tuple[int, int]], group: dist.ProcessGroup, length: int
) -> None:
    """Put the collectives where this module needs them; `placed` has the shares by parameter, which may be tied."""

    def dim(held: nn.Module) -> int | None:
        return placed.get(id(getattr(held, "weight", None)), (None,))[0]

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x_TD, *rest = args
        x_BLD = gather(x_TD, group).view(-1, length, x_TD.shape[-1])
        return (x_BLD, *rest)

    def leave(_: nn.Module, __: tuple[Any, ...], made: Tensor) -> Tensor:
        return reduce_scatter(made.flatten(0, -2), group)

    matrices = [held for held in module.children() if isinstance(held, nn.Linear)]
    if IN in map(dim, matrices):  # a pair: what its first matrices split, its last one adds up
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    else:  # a lone matrix, such as the output head: its outputs stay split
        for matrix in matrices:
            if dim(matrix) == OUT:
                matrix.register_forward_pre_hook(enter)
    for matrix in matrices:
        if dim(matrix) == IN and matrix.bias is not None:
            matrix.register_forward_hook(partial(_share_bias, group.size()))
    if isinstance(module, nn.Embedding) and dim(module) == OUT:
        first = placed[id(module.weight)][1]
        module.forward = lambda tokens: partial_lookup(tokens, module.weight, first)  # type: ignore
        module.register_forward_hook(leave)


def _share_bias(ranks: int, module: nn.Linear, _: tuple[Any, ...], made: Tensor) -> Tensor:
    """Leave a ranks-th of the bias in a result that is then summed over the ranks."""
    return made - module.bias * (1 - 1 / ranks)
