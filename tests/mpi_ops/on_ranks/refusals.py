"""What the backend refuses, each in one sentence that says what it got and what it takes."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist

from mpi_ops.errors import OperationError, TensorError
from tests.mpi_ops.on_ranks.world import World

GRID = torch.zeros(3, 2).T


def _refused(error, sentence, operation, *args, **kwargs):
    with pytest.raises(error, match=sentence) as raised:
        operation(*args, **kwargs).wait()
    assert "\n" not in str(raised.value)


def test_a_strided_tensor_is_not_written_as_flat_memory(world: World):
    group, sentence = (
        dist.group.WORLD,
        r"shape \(2, 3\) and stride \(1, 2\) is not contiguous .*contiguous\(\)",
    )
    flat = torch.zeros(6 * world.size)
    for name, operation in {
        "all_reduce": lambda: dist.all_reduce(GRID, async_op=True),
        "broadcast": lambda: dist.broadcast(GRID, 0, async_op=True),
        "all_gather_single": lambda: group.all_gather_single(GRID, flat[:1]),
        "reduce_scatter_single": lambda: group.reduce_scatter_single(GRID, flat),
        "reduce_scatter": lambda: dist.reduce_scatter(GRID, [GRID] * world.size, async_op=True),
        "all_to_all_single": lambda: group.all_to_all_single(GRID, flat, [], []),
        "scatter": lambda: dist.scatter(GRID, [GRID] * world.size if not world.rank else None, async_op=True),
        "recv": lambda: dist.irecv(GRID, 0),
    }.items():
        _refused(
            TensorError, f"^{name} on group 'default_pg' of {world.size}: a tensor of {sentence}", operation
        )


def test_a_tensor_of_another_device(world: World):
    elsewhere, here = torch.zeros(3, device="meta"), torch.zeros(3)
    for operation in (
        lambda: dist.group.WORLD.allreduce([elsewhere]),
        lambda: dist.group.WORLD.broadcast([elsewhere]),
        lambda: dist.group.WORLD.send([elsewhere], 0, 0),
        lambda: dist.group.WORLD.allgather([[here] * world.size], [elsewhere]),
    ):
        _refused(TensorError, "a tensor on meta: the mpi4py backend moves CPU tensors only", operation)


def test_a_reduction_the_dtype_does_not_have(world: World):
    for dtype, op, sentence in (
        (torch.float32, "BAND", "BAND of torch.float32; .*: SUM, PRODUCT, MIN, MAX, AVG, PREMUL_SUM"),
        (torch.int64, "AVG", "AVG of torch.int64; .*: SUM, PRODUCT, MIN, MAX, BAND, BOR, BXOR"),
        (torch.bool, "AVG", "AVG of torch.bool; .*: SUM, MAX, BOR, PRODUCT, MIN, BAND, BXOR"),
        (torch.float8_e5m2, "SUM", "SUM of torch.float8_e5m2; reductions of this dtype: none"),
    ):
        tensor = torch.zeros(3).to(dtype)
        _refused(TensorError, sentence, dist.all_reduce, tensor, getattr(dist.ReduceOp, op), async_op=True)


def test_tensors_of_several_dtypes(world: World):
    flat, whole = torch.zeros(3), torch.zeros(3 * world.size, dtype=torch.int64)
    group, sentence = dist.group.WORLD, "tensors of several dtypes: torch.float32, torch.int64"
    _refused(TensorError, sentence, group.all_gather_single, whole, flat)
    _refused(TensorError, sentence, group.reduce_scatter_single, flat, whole)
    _refused(TensorError, sentence, group.all_to_all_single, whole.float(), whole, [], [])
    _refused(TensorError, sentence, group.allgather, [[whole] * world.size], [flat])
    _refused(TensorError, sentence, group.alltoall, [whole] * world.size, [flat] * world.size)


def test_a_list_that_is_not_one_for_each_rank(world: World):
    group, tensor, size = dist.group.WORLD, torch.zeros(3), world.size
    sentence = f"a list of {size + 1} tensors; one for each of {size} ranks"
    many = [tensor.clone() for _ in range(size + 1)]
    _refused(TensorError, sentence, dist.all_gather, many, tensor, async_op=True)
    _refused(TensorError, sentence, dist.reduce_scatter, tensor, many, async_op=True)
    _refused(TensorError, sentence, dist.all_to_all, many, many[:size], async_op=True)
    _refused(TensorError, sentence, dist.all_to_all, many[:size], many, async_op=True)
    if world.rank == 0:
        _refused(TensorError, sentence, dist.gather, tensor, many, 0, async_op=True)
        _refused(TensorError, sentence, dist.scatter, tensor, many, 0, async_op=True)
    _refused(TensorError, "2 tensors or lists of them; a rank has one", group.allreduce, [tensor, tensor])


def test_sizes_that_do_not_fit(world: World):
    group, size = dist.group.WORLD, world.size
    whole, share = torch.zeros(3 * size + 1), torch.zeros(3)
    sentence = f"{3 * size + 1} elements for {size} ranks with 3 each"
    _refused(TensorError, sentence, group.all_gather_single, whole, share)
    _refused(TensorError, sentence, group.reduce_scatter_single, share, whole)
    sentence = "the input has 3 elements, its place in the outputs 4"
    _refused(TensorError, sentence, group.allgather, [[torch.zeros(4)] * size], [share])
    rows = torch.zeros(4, 2)
    wrong = [5] + [0] * (size - 1)
    sentence = rf"4 rows in splits of {re.escape(str(wrong))}: one for each of {size} ranks, all rows"
    _refused(TensorError, sentence, group.all_to_all_single, rows.clone(), rows, [], wrong)
    _refused(
        TensorError, "4 rows in splits of", group.all_to_all_single, rows.clone(), rows, [4, 0, 0, 0, 0], []
    )
    negative = [5, -1] + [0] * (size - 2)
    _refused(TensorError, "4 rows in splits of", group.all_to_all_single, rows.clone(), rows, negative, [])


def test_a_root_or_peer_outside_the_group(world: World):
    group, tensor = dist.group.WORLD, torch.zeros(3)
    _refused(
        OperationError,
        "broadcast on .*Invalid root: .*99",
        dist.broadcast,
        tensor,
        group_src=99,
        async_op=True,
    )
    _refused(OperationError, "send on .*Invalid rank: .*99", group.send, [tensor], 99, 0)
    _refused(OperationError, "recv on .*Invalid rank: .*99", group.recv, [tensor], 99, 0)


def test_a_message_of_another_length(world: World):
    """Too short, MPI takes it silently; too long, MPI says so."""
    with world.meeting_after():
        if world.rank == 1:
            for length in (2, 5):
                dist.send(torch.ones(length), 0)
        if world.rank == 0:
            works = [dist.irecv(torch.zeros(3), 1) for _ in range(2)]
            _refused(
                OperationError, "recv .*: 8 bytes came from rank 1, the tensor holds 12$", lambda: works[0]
            )
            _refused(
                OperationError, "recv .*: Message truncated: it is longer than the tensor", lambda: works[1]
            )


def test_the_error_of_an_operation_reaches_its_future(world: World):
    if world.rank == 1:
        dist.send(torch.ones(2), 0)
    if world.rank == 0:
        with pytest.raises(OperationError, match="8 bytes came from rank 1"):
            dist.irecv(torch.zeros(3), 1).get_future().wait()


def test_a_refusal_leaves_the_group_usable(world: World):
    _refused(TensorError, "not contiguous", dist.all_reduce, GRID, async_op=True)
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    assert tensor.tolist() == [world.size] * 3
