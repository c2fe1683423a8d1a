"""Cases of ring attention, functions `test_*(group)`, run on every rank; test_ring_attention.py starts and judges them.

Rank 0 prints {case: {"rank, place": traceback, ...}, ...}; a case without a fault has an empty entry.
"""

from __future__ import annotations

import json
import traceback
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mpi4py import MPI
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from mpi_ops import counters
from mpi_ops.errors import TensorError
from mpi_ops.process_group import destroy_process_group, init_process_group
from mpi_ops.ring_attention import ring_attention, zigzag
from mpi_ops.work import Work

TIMEOUT_S = 20.0
HEADS, KEY_HEADS, WIDTH = 6, 2, 8
Group = dist.ProcessGroup


def data(batch: int, heads: int, key_heads: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """Return q, k, v and the gradient of the output over the whole sequence, in `dtype`, the same on all ranks."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, n, WIDTH) for n in (heads, key_heads, key_heads, heads)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [each.to(dtype).transpose(1, 2) for each in drawn]  # strided as in a model


def full(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """Return torch's attention over the whole sequence, in fp64, and its gradients."""
    leaves = [each.double().requires_grad_() for each in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


def on_a_ring(
    group: Group, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, positions: Tensor | None = None
) -> list[Tensor]:
    """Return ring attention of this rank's share, and its gradients."""
    mine = zigzag(q.shape[2], group.size(), group.rank())
    leaves = [each[:, :, mine].requires_grad_() for each in (q, k, v)]
    out = ring_attention(*leaves, positions, group=group)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad[:, :, mine])]


def compare(
    group: Group,
    tolerance: float,
    dtype: torch.dtype = torch.float64,
    batch: int = 3,
    heads: int = HEADS,
    key_heads: int = KEY_HEADS,
    chunk: int = 5,
) -> None:
    """Fail unless the ring's share of the output and of all gradients is that of the whole."""
    tensors = data(batch, heads, key_heads, 2 * group.size() * chunk, dtype)
    mine = zigzag(tensors[0].shape[2], group.size(), group.rank())
    for name, got, want in zip(
        ("out", "dq", "dk", "dv"), on_a_ring(group, *tensors), full(*tensors), strict=True
    ):
        assert got.dtype == dtype, f"{name} is {got.dtype}"
        error = ((got - want[:, :, mine]).abs().max() / want.abs().max()).item()
        assert error <= tolerance, f"{name} is off by {error:.1e}"


def test_grouped_queries(group: Group) -> None:
    compare(group, 1e-10)


def test_one_key_head_and_chunks_of_one_position(group: Group) -> None:
    compare(group, 1e-10, batch=1, key_heads=1, chunk=1)


def test_as_many_key_heads_as_heads_in_large_messages(group: Group) -> None:
    """128 KiB each, which MPI does not send eagerly."""
    compare(group, 1e-10, batch=2, heads=4, key_heads=4, chunk=64)


def test_single_precision(group: Group) -> None:
    compare(group, 3e-6, torch.float32, chunk=16)


def test_brain_floats(group: Group) -> None:
    """A few roundings of 2^-9 in the kernels."""
    compare(group, 1e-2, torch.bfloat16, chunk=16)


def test_sums_of_brain_floats_over_blocks_are_rounded_once(group: Group) -> None:
    """Queries see the hot positions alone; bf16 has no number between 256 and 258, and sums go up by less than 1."""
    size, length = group.size(), 4 * group.size()
    firsts = torch.arange(size) * 2  # of every rank's early chunk

    def hot(*positions: int) -> Tensor:
        rows = torch.zeros(1, 1, length, WIDTH)
        rows[:, :, list(positions), 0] = 64
        return rows.bfloat16()

    value, grad = torch.zeros(2, 1, 1, length, WIDTH, dtype=torch.bfloat16)
    value[:, :, firsts] = 2
    value[:, :, 0] = 1024
    out, *_ = on_a_ring(group, hot(*range(length)), hot(*firsts.tolist()), value, grad)
    grad[:, :, firsts] = 0.75
    grad[:, :, firsts[-1]] = 256
    *_, dv = on_a_ring(group, hot(*range(length)), hot(0), value, grad)
    if group.rank() == 0:  # it holds the first position, and the last, which sees all
        assert out[0, 0, -1, 0] == torch.tensor((1024 + 2 * (size - 1)) / size).bfloat16()
        assert dv[0, 0, 0, 0] == torch.tensor(256 + 0.75 * (size - 1)).bfloat16()


def packed(batch: int, length: int, longest: int) -> tuple[Tensor, Tensor]:
    """Return positions (B, S) in documents of up to `longest` tokens, and which pairs (B, 1, S, S) see each other."""
    generator = torch.Generator().manual_seed(length * longest)
    first_BS = torch.rand(batch, length, generator=generator) < 1 / longest
    first_BS[:, 0] = True
    documents_BS = first_BS.cumsum(1)
    places_S = torch.arange(length)
    starts_BS = torch.where(first_BS, places_S, 0).cummax(1).values
    same_BSS = documents_BS.unsqueeze(1) == documents_BS.unsqueeze(2)
    return places_S - starts_BS, same_BSS.tril().unsqueeze(1)


def test_documents_see_themselves_alone(group: Group) -> None:
    size = group.size()
    for longest, chunk in ((1, 1), (3, 5), (7, 5), (2 * size * 5, 5), (40, 16)):
        length = 2 * size * chunk
        tensors = data(3, HEADS, KEY_HEADS, length, torch.float64)
        positions_BS, seen_B1SS = packed(3, length, longest)
        leaves = [each.clone().requires_grad_() for each in tensors[:3]]
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(*leaves, attn_mask=seen_B1SS, enable_gqa=True)
        wanted = [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]
        mine = zigzag(length, size, group.rank())
        with Kernels() as kernels:
            found = on_a_ring(group, *tensors, positions_BS)
        for name, got, want in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
            error = ((got - want[:, :, mine]).abs().max() / want.abs().max().clamp(1e-3)).item()
            assert error <= 1e-10, f"{name} is off by {error:.1e} with documents of up to {longest}"
        scored = [None] * size
        dist.all_gather_object(scored, sum(kernels.pairs), group)
        assert sum(scored) == HEADS * seen_B1SS.sum(), "no pair is scored in vain"


def test_positions_of_a_share_are_refused(group: Group) -> None:
    tensors = data(1, HEADS, KEY_HEADS, 4, torch.float64)[:3]
    with pytest.raises(TensorError, match=r"positions \(1, 2\): \(B, S\), those of the whole sequences"):
        ring_attention(*tensors, torch.zeros(1, 2), group=group)


def test_large_scores(group: Group) -> None:
    """What all keys share takes scores into the hundreds and cancels: exponentials overflow, logarithms do not."""
    q, k, v, grad = data(1, HEADS, KEY_HEADS, 8 * group.size(), torch.float64)
    whole, mine = (q, k + 500, v, grad), zigzag(q.shape[2], group.size(), group.rank())
    for got, want in zip(on_a_ring(group, *whole), full(*whole), strict=True):
        torch.testing.assert_close(got, want[:, :, mine], rtol=0, atol=1e-10 * want.abs().max().item())


def test_tensors_strided_in_any_way(group: Group) -> None:
    """Kernels of torch take for granted that a head's elements lie side by side; a sum's gradient has no strides."""

    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)

    *whole, _ = data(2, HEADS, KEY_HEADS, 4 * group.size(), torch.float64)
    mine = zigzag(4 * group.size(), group.size(), group.rank())
    leaves = [turned(each[:, :, mine]).requires_grad_() for each in whole]
    ring_attention(*leaves, group=group).sum().backward()
    for leaf, want in zip(leaves, full(*whole, torch.ones_like(whole[0]))[1:], strict=True):
        torch.testing.assert_close(leaf.grad, want[:, :, mine], rtol=0, atol=1e-12)


def sent() -> int:
    """Return the number of messages sent since the last reset of the counters."""
    return sum(each.calls for each in counters.snapshot() if each.op == "send")


class Kernels(TorchDispatchMode):
    """Notes, of every kernel of attention, the pairs of positions it scores and what is `seen` before it."""

    def __init__(self, seen: Callable[[], int] = sent) -> None:
        super().__init__()
        self.pairs: list[int] = []
        self.before: list[int] = []
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "flash_attention" in str(func):
            self.before.append(self.seen())
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            (batch, heads, queries, _), keys = args[0].shape, args[1].shape[2]
            causal = len(args) > 4 and args[4]  # a default is not passed on
            self.pairs.append(batch * heads * (queries * (queries + 1) // 2 if causal else queries * keys))
        return func(*args, **(kwargs or {}))


def test_every_rank_scores_as_many_pairs(group: Group) -> None:
    length = 6 * group.size()
    with Kernels() as kernels:
        on_a_ring(group, *data(1, HEADS, KEY_HEADS, length, torch.float64))
    loads = [None] * group.size()
    dist.all_gather_object(loads, sum(kernels.pairs), group)
    local = length // group.size()
    alike = local * (local + 1) // 2 + (group.size() - 1) * local * local // 2
    assert loads == [HEADS * alike] * group.size()
    assert sum(loads) == HEADS * length * (length + 1) // 2, "all pairs that are not in the future, once each"


def test_messages_leave_before_the_block_they_hide_behind(group: Group) -> None:
    steps = group.size()
    counters.reset()
    with Kernels() as kernels:
        on_a_ring(group, *data(1, HEADS, KEY_HEADS, 4 * steps, torch.float64))
    forward = [min(step + 1, steps - 1) for step in range(steps)]
    backward = [steps - 1 + max(0, min(step + 1, steps - 2)) + step for step in range(steps)]
    assert kernels.before[::KEY_HEADS] == kernels.before[KEY_HEADS - 1 :: KEY_HEADS] == forward + backward


def test_messages_under_way_are_polled_between_key_heads(group: Group) -> None:
    steps = group.size()
    spy = mock.patch.object(Work, "is_completed", autospec=True, side_effect=Work.is_completed)
    with spy as polled, Kernels(lambda: polled.call_count) as kernels:
        on_a_ring(group, *data(1, HEADS, KEY_HEADS, 4 * steps, torch.float64))
    before = zip(kernels.before[::2], kernels.before[1::2], strict=True)
    between = [second - first for first, second in before]
    forward = [2 * (step < steps - 1) for step in range(steps)]  # one goes, one comes
    assert between == forward + [2 * (step < steps - 2) + 2 * (step > 0) for step in range(steps)]


def test_it_costs_what_its_documentation_says(group: Group) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        tensors = data(2, HEADS, KEY_HEADS, 4 * group.size(), dtype)
        counters.reset()
        on_a_ring(group, *tensors)
        steps, message_bytes = group.size() - 1, 2 * tensors[1].nbytes // group.size()
        forward, keys, gradients = steps, max(0, steps - 1), steps
        assert sent() == forward + keys + gradients
        widened = 2 if dtype is torch.bfloat16 else 1
        sent_bytes = sum(each.sent_bytes for each in counters.snapshot() if each.op == "send")
        assert sent_bytes == message_bytes * (forward + keys + widened * gradients)


def groups(world_size: int) -> dict[str, Group]:
    """Return this rank's groups: all ranks, every other rank, all but the first."""
    everyone = list(range(world_size))
    made = {"world": dist.group.WORLD}
    for name, members in (("even", everyone[::2]), ("odd", everyone[1::2]), ("tail", everyone[1:])):
        group = dist.new_group(members) if members else None
        if dist.get_rank() in members:
            made[name] = group
    return made


def faults(case: Callable[[Any], None], places: Mapping[str, Any]) -> dict[str, str]:
    """Return the traceback of each place at which the case fails on this rank."""
    found = {}
    for name, place in places.items():
        try:
            case(place)
        except (Exception, pytest.fail.Exception):
            found[f"rank {dist.get_rank()}, {name}"] = traceback.format_exc(limit=-4)
    return found


def report(module: Mapping[str, Any], places: Callable[[int], Mapping[str, Any]] = groups) -> None:
    """Run the module's cases as one rank, at each of its places in a world of that size."""
    comm = MPI.COMM_WORLD
    init_process_group(comm, timeout_s=TIMEOUT_S)
    mine = places(comm.size)
    cases = {name: case for name, case in module.items() if name.startswith("test_")}
    found = {name: ChainMap(*comm.allgather(faults(case, mine))) for name, case in cases.items()}
    destroy_process_group(comm)
    if comm.rank == 0:
        print(json.dumps({name: dict(each) for name, each in found.items()}))


if __name__ == "__main__":
    report(globals())
