"""What is reduced: every ReduceOp, over every dtype that has it, gives what gloo gives, and what one process gives."""

from __future__ import annotations

from functools import reduce

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from tests.mpi_ops.on_ranks.world import DTYPES, FLOATS, INTEGERS, World, like_gloo, pattern, same

OPS = {
    "SUM": lambda parts: sum(parts),
    "PRODUCT": lambda parts: torch.stack(parts).prod(0),
    "MIN": lambda parts: torch.stack(parts).amin(0),
    "MAX": lambda parts: torch.stack(parts).amax(0),
    "BAND": lambda parts: reduce(torch.bitwise_and, parts),
    "BOR": lambda parts: reduce(torch.bitwise_or, parts),
    "BXOR": lambda parts: reduce(torch.bitwise_xor, parts),
    "AVG": lambda parts: sum(parts) / len(parts),
}
MOST_INTEGERS = (*INTEGERS, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64)
ALLOWED = [
    (name, dtype)
    for name in OPS
    for dtype in (*FLOATS, *MOST_INTEGERS, torch.bool)
    if not (name.startswith("B") and dtype in FLOATS) and not (name == "AVG" and dtype not in FLOATS)
]


def _in_one_process(name, dtype, parts):
    if dtype is torch.bool:
        return OPS[name]([part.long() for part in parts]).bool() if name != "BXOR" else OPS[name](parts)
    return OPS[name]([part.to(torch.float64 if dtype in FLOATS else torch.int64) for part in parts]).to(dtype)


def test_every_reduction_of_every_dtype_equals_one_process(world: World):
    for pair in world.pairs:
        for name, dtype in ALLOWED:
            parts = [pattern(rank, 4097, dtype) for rank in range(pair.size)]
            got = parts[pair.rank].clone()
            dist.all_reduce(got, getattr(dist.ReduceOp, name), pair.mpi)
            same([got], [_in_one_process(name, dtype, parts)], f"{name} of {dtype}, {pair.name}")


def test_all_reduce(world: World):
    def operation(group, dtype, count):
        tensor = pattern(group.rank(), count, dtype)
        dist.all_reduce(tensor, group=group)
        return [tensor]

    like_gloo(world, operation)


def test_reduce_to_every_root(world: World):
    for pair in world.pairs:
        for name, dtype in ALLOWED:
            for root in range(pair.size):
                parts = [pattern(rank, 7, dtype) for rank in range(pair.size)]
                got = parts[pair.rank].clone()
                dist.reduce(got, op=getattr(dist.ReduceOp, name), group=pair.mpi, group_dst=root)
                at_root = _in_one_process(name, dtype, parts) if pair.rank == root else parts[pair.rank]
                same([got], [at_root], f"{name} of {dtype} to {root}, {pair.name}")


def test_reduce_scatter_of_lists(world: World):
    def operation(group, dtype, count):
        output = torch.zeros(count, dtype=dtype)
        parts = [pattern(group.rank(), count, dtype, place) for place in range(group.size())]
        dist.reduce_scatter(output, parts, group=group)
        return [output]

    like_gloo(world, operation)


def test_reduce_scatter_of_lists_of_several_sizes(world: World):
    for pair in world.pairs:
        output = torch.zeros(pair.rank + 1)
        parts = [torch.full((place + 1,), float(pair.rank + place)) for place in range(pair.size)]
        dist.reduce_scatter(output, parts, group=pair.mpi)
        total = sum(rank + pair.rank for rank in range(pair.size))
        assert output.tolist() == [total] * (pair.rank + 1), pair.name


def test_reduce_scatter_of_one_tensor(world: World):
    def operation(group, dtype, count):
        output = torch.zeros(count, dtype=dtype)
        dist.reduce_scatter_single(output, pattern(group.rank(), group.size() * count, dtype), group=group)
        return [output]

    like_gloo(world, operation)


def test_reduce_scatter_means_and_maxima(world: World):
    for op, dtypes in ((dist.ReduceOp.AVG, FLOATS), (dist.ReduceOp.MAX, DTYPES)):

        def operation(group, dtype, count, op=op):
            output = torch.zeros(count, dtype=dtype)
            tensor = pattern(group.rank(), group.size() * count, dtype)
            dist.reduce_scatter_single(output, tensor, op, group)
            return [output]

        like_gloo(world, operation, dtypes)


def test_reduce_scatter_into_a_part_of_its_input(world: World):
    for pair in world.pairs:
        for place in range(pair.size):
            tensor = torch.arange(pair.size * 7.0)
            output = tensor[place * 7 :][:7]
            dist.reduce_scatter_single(output, tensor, group=pair.mpi)
            assert output.tolist() == [(pair.rank * 7 + i) * pair.size for i in range(7)]


def test_narrow_floats_are_added_up_in_fp32(world: World):
    for pair in world.pairs:
        for dtype, large in ((torch.bfloat16, 256.0), (torch.float16, 2048.0)):
            want = torch.tensor([large + pair.size - 1]).to(
                dtype
            )  # in `dtype` itself, large + 1 + 1 is large
            mine = torch.tensor([1.0 if pair.rank else large]).to(dtype)
            summed, scattered, rooted = mine.clone(), mine.clone(), mine.clone()
            dist.all_reduce(summed, group=pair.mpi)
            dist.reduce_scatter_single(scattered, mine.repeat(pair.size), group=pair.mpi)
            dist.reduce(rooted, group=pair.mpi, group_dst=0)
            same([summed, scattered], [want, want], f"{dtype}, {pair.name}")
            same([rooted], [mine if pair.rank else want], f"{dtype}, {pair.name}")


def test_means_round_once(world: World):
    for pair in world.pairs:
        mean = torch.tensor([1.0 + pair.rank], dtype=torch.bfloat16)
        dist.all_reduce(mean, dist.ReduceOp.AVG, pair.mpi)
        same([mean], [torch.tensor([(1 + pair.size) / 2], dtype=torch.bfloat16)], pair.name)


def test_premultiplied_sums(world: World):
    for pair in world.pairs:
        for dtype in FLOATS:
            tensor = torch.full((7,), 1.0 + pair.rank, dtype=dtype)
            dist.all_reduce(tensor, dist._make_nccl_premul_sum(0.5), pair.mpi)
            want = 0.5 * pair.size * (pair.size + 1) / 2
            same([tensor], [torch.full((7,), want, dtype=dtype)], f"{dtype}, {pair.name}")


def test_nan_reaches_every_rank(world: World):
    for pair in world.pairs:
        for dtype in FLOATS:
            tensor = torch.tensor([float("nan") if pair.rank == pair.size - 1 else 1.0, 1.0], dtype=dtype)
            dist.all_reduce(tensor, group=pair.mpi)
            assert tensor.isnan().tolist() == [True, False], f"{dtype}, {pair.name}"


def test_a_tensor_that_needs_gradients_is_reduced_too(world: World):
    for pair in world.pairs:
        for dtype in FLOATS:
            leaf = torch.ones(3, dtype=dtype, requires_grad=True)
            dist.all_reduce(leaf, group=pair.mpi)
            assert leaf.tolist() == [pair.size] * 3
            assert leaf.grad_fn is None


def test_coalesced_reductions(world: World):
    def operation(group, dtype, count):
        tensors = [pattern(group.rank(), length, dtype, length) for length in (count, 3)]
        with dist._coalescing_manager(group):
            for tensor in tensors:
                dist.all_reduce(tensor, group=group)
        outputs = [torch.zeros(length, dtype=dtype) for length in (count, 3)]
        with dist._coalescing_manager(group, async_ops=True) as coalescing:
            for output in outputs:
                whole = pattern(group.rank(), group.size() * len(output), dtype)
                dist.reduce_scatter_single(output, whole, group=group)
        coalescing.wait()
        return [*tensors, *outputs]

    like_gloo(world, operation)


def test_functional_collectives(world: World):
    for pair in world.pairs:
        tensor = pattern(pair.rank, 4 * pair.size, torch.float32)
        results = [
            [
                functional.all_reduce(tensor, "sum", group),
                functional.all_gather_tensor(tensor, 0, group),
                functional.reduce_scatter_tensor(tensor, "avg", 0, group),
                functional.broadcast(tensor, pair.size - 1, group),
                functional.all_to_all_single(tensor, None, None, group),
                *functional.all_reduce_coalesced([tensor, tensor + 1], "max", group),
            ]
            for group in (pair.mpi, pair.gloo)
        ]
        same([+each for each in results[0]], [+each for each in results[1]], pair.name)
