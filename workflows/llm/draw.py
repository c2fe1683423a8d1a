"""The weights that a run begins with where nobody gives it any: each rank draws the part that it holds.

A part has the bits that it has in the whole model on one process, so no layout changes where a run begins. Beside the
parts there is never more in memory than DRAWN_AT_ONCE numbers: a stage may be larger than what is left of its node.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

DRAWN_AT_ONCE = 1 << 18


def give_memory(model: nn.Module, device: torch.device) -> None:
    """Give memory to the weights that have none; NaN tells if nobody sets them. As the same objects they stay tied."""
    for weight in model.parameters():
        if weight.is_meta:
            # Where full_like would load torch's compiler, which costs a rank a second.
            values = weight.new_full(weight.shape, math.nan, device=device)
            torch.utils.swap_tensors(weight, nn.Parameter(values, weight.requires_grad))


@torch.no_grad()
def draw(part: Tensor, name: str, seed: int, shape: Sequence[int], offset: Sequence[int]) -> None:
    """Set a part of a weight, which lies at `offset` in the whole of `shape`, from `seed` and the weight's own name.

    The matrices that write to the residual stream are 0, so that every block starts as the identity (after 200
    steps this takes 4 % off the loss and two thirds off its spread over seeds, and with 8 experts 1.7 to 4.5 % for each
    of four seeds). All others are normal with deviation 1 / sqrt(columns). The last norm is 1 / sqrt(width): a token's
    logit for itself, which with a tied head is the square of its embedding, starts near 1, and the loss near ln V. The
    other norms are 1.

    Cost: no message. A rank draws a matrix from its first row to the last one that it holds, whatever it keeps of them.
    """
    if name.endswith(("bias", "wo.weight", "down.weight", "experts.down")):
        part.zero_()
    elif len(shape) == 1:
        part.fill_(shape[0] ** -0.5 if name == "norm.weight" else 1.0)
    elif len(shape) == 2:
        _draw_matrix(part, f"{seed} {name}", shape, offset)
    else:  # stacked ones, of experts, each with a name of its own
        for expert, matrix in enumerate(part, offset[0]):
            _draw_matrix(matrix, f"{seed} {name}.{expert}", shape[1:], offset[1:])


def _draw_matrix(part: Tensor, own_name: str, shape: Sequence[int], offset: Sequence[int]) -> None:
    """Draw a matrix in stretches of rows and keep the part's share of each."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(own_name.encode()).digest()[:8]))
    (rows, columns), (first, left) = shape, offset
    # torch makes normal numbers sixteen at a time: stretches of that many rows have the bits of the whole.
    height = 16 * max(1, DRAWN_AT_ONCE // columns // 16)
    for begin in range(0, first + len(part), height):
        drawn = torch.randn((min(height, rows - begin), columns), generator=generator, dtype=torch.float64)
        kept = drawn[max(0, first - begin) : first + len(part) - begin, left : left + part.shape[1]]
        to = max(0, begin - first)
        part[to : to + len(kept)] = kept / math.sqrt(columns)
