"""Cases of ring attention, functions of a group, run on every rank; test_ring_attention.py starts and judges them.

Rank 0 prints {case: {"rank, group": traceback, ...}, ...}; a case without a fault has an empty entry.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mpi4py import MPI
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from mpi_ops import counters
from mpi_ops.process_group import destroy_process_group, init_process_group
from mpi_ops.ring_attention import ring_attention, zigzag

TIMEOUT_S = 20.0
HEADS, KEY_HEADS, WIDTH = 6, 2, 8
Group = dist.ProcessGroup
Case = Callable[[Group], None]


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


def on_a_ring(group: Group, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """Return ring attention of this rank's share, and its gradients."""
    mine = zigzag(q.shape[2], group.size(), group.rank())
    leaves = [each[:, :, mine].requires_grad_() for each in (q, k, v)]
    out = ring_attention(*leaves, group)
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


def grouped_queries(group: Group) -> None:
    compare(group, 1e-10)


def as_many_key_heads_as_heads(group: Group) -> None:
    compare(group, 1e-10, key_heads=HEADS)


def one_key_head_for_all(group: Group) -> None:
    compare(group, 1e-10, batch=1, key_heads=1, chunk=2)


def chunks_of_one_position(group: Group) -> None:
    compare(group, 1e-10, chunk=1)


def messages_that_need_the_receiver(group: Group) -> None:
    """128 KiB each, which MPI does not send eagerly."""
    compare(group, 1e-10, batch=2, heads=4, key_heads=4, chunk=64)


def single_precision(group: Group) -> None:
    compare(group, 3e-6, torch.float32, chunk=16)


def brain_floats(group: Group) -> None:
    """The output is rounded once more than a block, at 2^-9; sums over blocks are not."""
    compare(group, 1e-2, torch.bfloat16, chunk=16)


def large_scores(group: Group) -> None:
    """What all keys share takes scores into the hundreds and cancels: exponentials overflow, logarithms do not."""
    q, k, v, grad = data(1, HEADS, KEY_HEADS, 8 * group.size(), torch.float64)
    whole, mine = (q, k + 500, v, grad), zigzag(q.shape[2], group.size(), group.rank())
    for got, want in zip(on_a_ring(group, *whole), full(*whole), strict=True):
        torch.testing.assert_close(got, want[:, :, mine], rtol=0, atol=1e-10 * want.abs().max().item())


def a_gradient_that_is_one_number(group: Group) -> None:
    """The gradient of a sum has stride 0 everywhere, and q, k, v may be strided in any way."""
    q, k, v, _ = data(2, HEADS, KEY_HEADS, 4 * group.size(), torch.float64)
    q, k, v = (each.transpose(2, 3).contiguous().transpose(2, 3) for each in (q, k, v))
    mine = zigzag(q.shape[2], group.size(), group.rank())
    leaves = [
        each[:, :, mine].transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for each in (q, k, v)
    ]
    ring_attention(*leaves, group).sum().backward()
    for leaf, want in zip(leaves, full(q, k, v, torch.ones_like(q))[1:], strict=True):
        torch.testing.assert_close(leaf.grad, want[:, :, mine], rtol=0, atol=1e-12)


class Kernels(TorchDispatchMode):
    """Notes, of every kernel of attention, the pairs of positions it scores and the messages sent before it."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[int] = []
        self.sent: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "flash_attention" in str(func):
            self.sent.append(sum(each.calls for each in counters.snapshot() if each.op == "send"))
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            (batch, heads, queries, _), keys = args[0].shape, args[1].shape[2]
            causal = len(args) > 4 and args[4]  # a default is not passed on
            self.pairs.append(batch * heads * (queries * (queries + 1) // 2 if causal else queries * keys))
        return func(*args, **(kwargs or {}))


def every_rank_scores_as_many_pairs(group: Group) -> None:
    length = 6 * group.size()
    with Kernels() as kernels:
        on_a_ring(group, *data(1, HEADS, KEY_HEADS, length, torch.float64))
    loads = [None] * group.size()
    dist.all_gather_object(loads, sum(kernels.pairs), group)
    local = length // group.size()
    alike = local * (local + 1) // 2 + (group.size() - 1) * local * local // 2
    assert loads == [HEADS * alike] * group.size()
    assert sum(loads) == HEADS * length * (length + 1) // 2, "all pairs that are not in the future, once each"


def messages_leave_before_the_block_they_hide_behind(group: Group) -> None:
    steps = group.size()
    counters.reset()
    with Kernels() as kernels:
        on_a_ring(group, *data(1, HEADS, KEY_HEADS, 4 * steps, torch.float64))
    forward = [min(step + 1, steps - 1) for step in range(steps)]
    backward = [steps - 1 + max(0, min(step + 1, steps - 2)) + step for step in range(steps)]
    assert kernels.sent[::KEY_HEADS] == kernels.sent[KEY_HEADS - 1 :: KEY_HEADS] == forward + backward


def it_costs_what_its_documentation_says(group: Group) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        tensors = data(2, HEADS, KEY_HEADS, 4 * group.size(), dtype)
        counters.reset()
        on_a_ring(group, *tensors)
        sent = [each for each in counters.snapshot() if each.op == "send"]
        steps, message_bytes = group.size() - 1, 2 * tensors[1].nbytes // group.size()
        forward, keys, gradients = steps, max(0, steps - 1), steps
        assert sum(each.calls for each in sent) == forward + keys + gradients
        widened = 2 if dtype is torch.bfloat16 else 1
        assert sum(each.sent_bytes for each in sent) == message_bytes * (forward + keys + widened * gradients)


def without_gradients(group: Group) -> None:
    q, k, v, grad = data(1, HEADS, KEY_HEADS, 4 * group.size(), torch.float64)
    mine = zigzag(q.shape[2], group.size(), group.rank())
    with torch.no_grad():
        out = ring_attention(q[:, :, mine], k[:, :, mine], v[:, :, mine], group)
    torch.testing.assert_close(out, full(q, k, v, grad)[0][:, :, mine], rtol=0, atol=1e-12)


CASES: Mapping[str, Case] = {
    case.__name__: case
    for case in (
        grouped_queries,
        as_many_key_heads_as_heads,
        one_key_head_for_all,
        chunks_of_one_position,
        messages_that_need_the_receiver,
        single_precision,
        brain_floats,
        large_scores,
        a_gradient_that_is_one_number,
        every_rank_scores_as_many_pairs,
        messages_leave_before_the_block_they_hide_behind,
        it_costs_what_its_documentation_says,
        without_gradients,
    )
}


def groups(world_size: int) -> dict[str, Group]:
    """Return this rank's groups: all ranks, every other rank, all but the first."""
    everyone = list(range(world_size))
    made = {"world": dist.group.WORLD}
    for name, members in (("even", everyone[::2]), ("odd", everyone[1::2]), ("tail", everyone[1:])):
        group = dist.new_group(members) if members else None
        if dist.get_rank() in members:
            made[name] = group
    return made


def faults(case: Case, mine: Mapping[str, Group]) -> dict[str, str]:
    """Return the traceback of each group on which the case fails on this rank."""
    found = {}
    for name, group in mine.items():
        try:
            case(group)
        except Exception:
            found[f"rank {dist.get_rank()}, group {name}"] = traceback.format_exc(limit=-4)
    return found


def report(cases: Mapping[str, Case]) -> None:
    """Run the cases as one rank."""
    comm = MPI.COMM_WORLD
    init_process_group(comm, timeout_s=TIMEOUT_S)
    mine = groups(comm.size)
    found = {name: comm.allgather(faults(case, mine)) for name, case in cases.items()}
    destroy_process_group(comm)
    if comm.rank == 0:
        merged = {
            name: {at: text for part in parts for at, text in part.items()} for name, parts in found.items()
        }
        print(json.dumps(merged))


if __name__ == "__main__":
    report(CASES)
