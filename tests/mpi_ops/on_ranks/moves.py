"""What is only moved: broadcast, gathers, scatters, all-to-alls and objects arrive as they do with gloo."""

from __future__ import annotations

import torch
import torch.distributed as dist
from mpi4py import MPI

from tests.mpi_ops.on_ranks.world import COUNTS, DTYPES, World, like_gloo, pattern, same

MOVED_ONLY = (
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int16,
    torch.uint16,
    torch.uint64,
)


def _empty(group, dtype, count):
    return [torch.zeros(count, dtype=dtype) for _ in range(group.size())]


def test_broadcast_from_every_root(world: World):
    def operation(group, dtype, count):
        tensors = [pattern(group.rank(), count, dtype, root) for root in range(group.size())]
        for root, tensor in enumerate(tensors):
            dist.broadcast(tensor, group=group, group_src=root)
        return tensors

    like_gloo(world, operation)


def test_all_gather(world: World):
    def operation(group, dtype, count):
        outputs = _empty(group, dtype, count)
        dist.all_gather(outputs, pattern(group.rank(), count, dtype), group)
        return outputs

    like_gloo(world, operation)


def test_all_gather_of_inputs_of_several_sizes(world: World):
    for pair in world.pairs:
        outputs = [torch.zeros(rank + 1) for rank in range(pair.size)]
        dist.all_gather(outputs, torch.full((pair.rank + 1,), float(pair.rank)), pair.mpi)
        assert [each.tolist() for each in outputs] == [[float(r)] * (r + 1) for r in range(pair.size)]


def test_all_gather_into_one_tensor(world: World):
    def operation(group, dtype, count):
        output = torch.zeros(group.size() * count, dtype=dtype)
        dist.all_gather_single(output, pattern(group.rank(), count, dtype), group)
        return [output]

    like_gloo(world, operation)


def test_all_gather_in_place(world: World):
    """FSDP2 does so: the input is the rank's own part of the output."""

    def operation(group, dtype, count):
        output = torch.zeros(group.size() * count, dtype=dtype)
        own = output.narrow(0, group.rank() * count, count)
        own.copy_(pattern(group.rank(), count, dtype))
        dist.all_gather_single(output, own, group)
        return [output]

    like_gloo(world, operation)


class Strict(MPI.Intracomm):
    """Refuses what the standard forbids and MPICH happens to bear: what is sent lying in what is received."""

    def Iallgather(self, sent, received):
        if sent is not MPI.IN_PLACE:
            assert not received.address <= sent.address < received.address + received.nbytes
        return super().Iallgather(sent, received)


def test_all_gather_from_another_part_of_the_output(world: World):
    for pair in world.pairs:
        output = torch.zeros(pair.size + 1)[: pair.size]
        wrong_place = output[(pair.rank + 1) % pair.size :][:1]
        wrong_place.fill_(pair.rank)
        pair.mpi.comm, lenient = Strict(pair.mpi.comm), pair.mpi.comm
        dist.all_gather_single(output, wrong_place, pair.mpi)
        pair.mpi.comm = lenient
        assert output.tolist() == list(range(pair.size))


def test_gather_to_every_root(world: World):
    def operation(group, dtype, count):
        gathered = []
        for root in range(group.size()):
            outputs = _empty(group, dtype, count) if group.rank() == root else None
            dist.gather(pattern(group.rank(), count, dtype, root), outputs, group=group, group_dst=root)
            gathered += outputs or []
        return gathered

    like_gloo(world, operation)


def test_gather_and_scatter_of_several_sizes(world: World):
    for pair in world.pairs:
        wanted = [torch.full((rank + 1,), float(rank)) for rank in range(pair.size)]
        for root in range(pair.size):
            outputs = [torch.zeros_like(each) for each in wanted] if pair.rank == root else None
            dist.gather(wanted[pair.rank], outputs, group=pair.mpi, group_dst=root)
            same(outputs or wanted, wanted, f"gathered by {root}, {pair.name}")
            output = torch.zeros(pair.rank + 1)
            dist.scatter(output, wanted if pair.rank == root else None, group=pair.mpi, group_src=root)
            same([output], [wanted[pair.rank]], f"scattered by {root}, {pair.name}")


def test_scatter_from_every_root(world: World):
    def operation(group, dtype, count):
        scattered = []
        for root in range(group.size()):
            output = torch.zeros(count, dtype=dtype)
            parts = [pattern(rank, count, dtype, root) for rank in range(group.size())]
            dist.scatter(output, parts if group.rank() == root else None, group=group, group_src=root)
            scattered.append(output)
        return scattered

    like_gloo(world, operation)


def test_all_to_all_of_tensors_of_several_sizes(world: World):
    """A closed form: gloo wants equal sizes here."""
    for pair in world.pairs:
        for dtype in DTYPES:
            for count in COUNTS:

                def message(source, target, dtype=dtype, count=count):
                    return pattern(source, count + (source + 2 * target) % 3, dtype, salt=target)

                inputs = [message(pair.rank, other) for other in range(pair.size)]
                wanted = [message(other, pair.rank) for other in range(pair.size)]
                outputs = [torch.zeros_like(each) for each in wanted]
                dist.all_to_all(outputs, inputs, pair.mpi)
                same(outputs, wanted, f"{pair.name} of {pair.size}, {dtype}, {count} elements")


def test_all_to_all_of_equal_shares(world: World):
    def operation(group, dtype, count):
        output = torch.zeros(group.size() * count, dtype=dtype)
        dist.all_to_all_single(output, pattern(group.rank(), group.size() * count, dtype), group=group)
        return [output]

    like_gloo(world, operation)


def test_all_to_all_in_one_tensor(world: World):
    for pair in world.pairs:
        tensor = pair.rank * 10 + torch.arange(pair.size)
        dist.all_to_all_single(tensor, tensor, group=pair.mpi)
        assert tensor.tolist() == [other * 10 + pair.rank for other in range(pair.size)]


def test_all_to_all_of_uneven_rows(world: World):
    def operation(group, dtype, count):
        sent = [(group.rank() + 2 * other) % 3 for other in range(group.size())]
        received = [(other + 2 * group.rank()) % 3 for other in range(group.size())]
        tensor = pattern(group.rank(), sum(sent) * count, dtype).reshape(sum(sent), count)
        output = torch.zeros(sum(received), count, dtype=dtype)
        dist.all_to_all_single(output, tensor, received, sent, group)
        return [output]

    like_gloo(world, operation)


def test_what_is_read_or_listed_may_be_strided(world: World):
    for pair in world.pairs:
        tensor = torch.arange(6.0).reshape(2, 3).T + pair.rank
        outputs = [torch.zeros(2, 3).T for _ in range(pair.size)]
        dist.all_gather(outputs, tensor, pair.mpi)
        for rank, output in enumerate(outputs):
            assert torch.equal(output, torch.arange(6.0).reshape(2, 3).T + rank)


def test_dtypes_that_mpi_cannot_add_up_travel_as_bytes(world: World):
    """A closed form: gloo does not take them."""
    for pair in world.pairs:
        for dtype in MOVED_ONLY:
            wanted = [torch.full((3,), 1.0 + rank).to(dtype) for rank in range(pair.size)]
            own, whole = wanted[pair.rank], torch.zeros(3 * pair.size, dtype=dtype)
            told, listed, swapped = torch.zeros(3, dtype=dtype), *(_empty(pair.mpi, dtype, 3) for _ in "12")
            dist.all_gather_single(whole, own, pair.mpi)
            dist.all_gather(listed, own, pair.mpi)
            dist.all_to_all(swapped, [own] * pair.size, pair.mpi)
            dist.scatter(told, wanted if pair.rank == 0 else None, group=pair.mpi, group_src=0)
            for found in ([*whole.split(3)], listed, swapped):
                same(*([each.view(torch.uint8) for each in many] for many in (found, wanted)), f"{dtype}")
            dist.broadcast(told, group=pair.mpi, group_src=pair.size - 1)
            same([told.view(torch.uint8)], [wanted[-1].view(torch.uint8)], f"{dtype}, {pair.name}")


def test_objects(world: World):
    for pair in world.pairs:
        mine = {"rank": pair.rank, "padding": "x" * (100 * pair.rank)}
        everyone = [{"rank": rank, "padding": "x" * (100 * rank)} for rank in range(pair.size)]
        gathered = [None] * pair.size
        dist.all_gather_object(gathered, mine, pair.mpi)
        assert gathered == everyone
        at_root = [None] * pair.size if pair.rank == pair.size - 1 else None
        dist.gather_object(mine, at_root, group=pair.mpi, group_dst=pair.size - 1)
        assert at_root is None or at_root == everyone
        told = [mine]
        dist.broadcast_object_list(told, group=pair.mpi, group_src=pair.size - 1)
        assert told == [everyone[-1]]
        given = [None]
        dist.scatter_object_list(given, everyone if pair.rank == 0 else None, group=pair.mpi, group_src=0)
        assert given == [mine]


def test_coalesced_all_gathers(world: World):
    def operation(group, dtype, count):
        outputs = [torch.zeros(group.size() * length, dtype=dtype) for length in (count, 3)]
        with dist._coalescing_manager(group, async_ops=True) as coalescing:
            for output, length in zip(outputs, (count, 3), strict=True):
                dist.all_gather_single(output, pattern(group.rank(), length, dtype, length), group)
        coalescing.wait()
        return outputs

    like_gloo(world, operation)


def test_all_gather_coalesced(world: World):
    for pair in world.pairs:
        outputs = [[torch.zeros(length) for _ in range(pair.size)] for length in (2, 5)]
        inputs = [torch.full((length,), float(pair.rank)) for length in (2, 5)]
        pair.mpi.allgather_coalesced(outputs, inputs).wait()
        for length, output in zip((2, 5), outputs, strict=True):
            assert [each.tolist() for each in output] == [[float(r)] * length for r in range(pair.size)]


def test_a_barrier_holds_until_all_ranks_have_come(world: World):
    for pair in world.pairs:
        works = [dist.barrier(pair.mpi, async_op=True)] if pair.rank else []
        arrived = [None] * pair.size  # gloo's exchange: all others wait in the barrier by now
        dist.all_gather_object(arrived, pair.rank, pair.gloo)
        if pair.size > 1 and works:
            assert not works[0].is_completed()
        dist.all_gather_object(arrived, pair.rank, pair.gloo)
        if not works:
            works = [dist.barrier(pair.mpi, async_op=True)]
        works[0].wait()
        assert works[0].is_completed()
