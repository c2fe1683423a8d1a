"""Messages from one rank to another: by source and tag, in order, from anybody, and to oneself."""

from __future__ import annotations

import torch
import torch.distributed as dist

from tests.mpi_ops.on_ranks.world import DTYPES, World, counts, like_gloo, pattern, same


def test_a_ring_of_isend_and_irecv(world: World):
    def operation(group, dtype, count):
        right, left = (group.rank() + 1) % group.size(), (group.rank() - 1) % group.size()
        message = torch.zeros(count, dtype=dtype)
        if group.size() == 1:
            return [message]
        works = [
            dist.irecv(message, group=group, group_src=left),
            dist.isend(pattern(group.rank(), count, dtype), group=group, group_dst=right),
        ]
        for work in works:
            work.wait()
        return [message]

    like_gloo(world, operation)


def test_send_and_recv_tell_the_world_rank_of_the_source(world: World):
    for pair in world.pairs:
        if pair.rank == 0:
            for other in range(1, pair.size):
                dist.send(torch.tensor([other]), group=pair.mpi, group_dst=other, tag=other)
        else:
            message = torch.zeros(1, dtype=torch.int64)
            source = dist.recv(message, group=pair.mpi, group_src=0, tag=pair.rank)
            assert source == dist.get_global_rank(pair.mpi, 0)
            assert message.item() == pair.rank


def test_from_any_source_each_message_comes_once_and_says_whose_it_is(world: World):
    for pair in world.pairs:
        if pair.rank:
            dist.send(torch.tensor([float(pair.rank)]), group=pair.mpi, group_dst=0)
            continue
        seen = set()
        for _ in range(1, pair.size):
            message = torch.zeros(1)
            source = dist.recv(message, group=pair.mpi)
            assert source == dist.get_global_rank(pair.mpi, int(message.item()))
            seen.add(source)
        assert len(seen) == pair.size - 1


def test_tags_keep_messages_apart_and_one_tag_keeps_their_order(world: World):
    for pair in world.pairs:
        if pair.size == 1:
            continue
        if pair.rank == 0:
            sent = [dist.isend(torch.tensor([i]), group=pair.mpi, group_dst=1, tag=i % 2) for i in range(20)]
            for work in sent:
                work.wait()
        elif pair.rank == 1:
            for i in [*range(1, 20, 2), *range(0, 20, 2)]:
                message = torch.zeros(1, dtype=torch.int64)
                dist.recv(message, group=pair.mpi, group_src=0, tag=i % 2)
                assert message.item() == i


def test_a_batch_whose_receives_come_first_does_not_lock_up(world: World):
    for pair in world.pairs:
        for dtype in DTYPES:
            for count in counts(dtype):
                others = [rank for rank in range(pair.size) if rank != pair.rank]
                received = [torch.zeros(count, dtype=dtype) for _ in others]
                message = pattern(pair.rank, count, dtype)
                batch = [
                    *(
                        dist.P2POp(dist.irecv, t, group=pair.mpi, group_peer=r)
                        for t, r in zip(received, others, strict=True)
                    ),
                    *(dist.P2POp(dist.isend, message, group=pair.mpi, group_peer=r) for r in others),
                ]
                for work in dist.batch_isend_irecv(batch) if batch else []:
                    work.wait()
                same(
                    received,
                    [pattern(rank, count, dtype) for rank in others],
                    f"{pair.name}, {dtype}, {count}",
                )


def test_objects_travel_between_two_ranks(world: World):
    for pair in world.pairs:
        if pair.size > 1 and pair.rank < 2:
            objects = [{"step": 7}, "text"] if pair.rank == 0 else [None, None]
            if pair.rank == 0:
                dist.send_object_list(objects, group=pair.mpi, group_dst=1)
            else:
                dist.recv_object_list(objects, group=pair.mpi, group_src=0)
            assert objects == [{"step": 7}, "text"]
