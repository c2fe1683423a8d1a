"""Pipelines whose groups carry messages as NCCL's do: what a rank asks of a group happens in that order, one by one,

and while a receive waits on a GPU, nothing there goes on that needs it idle.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_ops import pipeline
from mpi_ops.mesh import ring_pairs
from mpi_ops.schedule import placement, schedule

SHAPE = (3,)
STAGES = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zero_bubble": 1, "zbv": 2, "dualpipev": 2}


class StuckError(Exception):
    """All ranks wait for each other."""


@dataclass(eq=False)
class Message:
    """One end of a message: a send, or a receive."""

    tensor: torch.Tensor
    peer: int
    sends: bool
    world: SerialWorld
    done: bool = False

    def is_completed(self) -> bool:
        return self.done

    def wait(self) -> None:
        with self.world.changed:
            self.world.awaited.append(self)
            self.world.look_for_a_way_on()
            while not self.done:
                if self.world.stuck:
                    raise StuckError
                self.world.changed.wait()
            self.world.awaited.remove(self)


@dataclass(eq=False)
class SerialGroup:
    """Ranks by their places in a pipeline, each with a queue of what it has asked for; a send waits for its receive."""

    ranks: tuple[int, ...]
    queues: dict[int, deque[Message]] = field(default_factory=dict)

    def ask(self, rank: int, message: Message) -> Message:
        with message.world.changed:
            self.queues.setdefault(rank, deque()).append(message)
            while any(self._meet(one) for one in self.ranks):
                message.world.changed.notify_all()
        return message

    def _meet(self, rank: int) -> bool:
        """Carry the message that a rank and its peer have both come to, if there is one."""
        mine = next(iter(self.queues.get(rank, ())), None)
        theirs = next(iter(self.queues.get(mine.peer, ())), None) if mine else None
        if not mine or not theirs or theirs.peer != rank or not (mine.sends and not theirs.sends):
            return False
        theirs.tensor.copy_(mine.tensor)
        for end, place in ((mine, rank), (theirs, mine.peer)):
            end.done = True
            self.queues[place].popleft()
        return True


class SerialWorld:
    """Stands in for torch.distributed in threads that are ranks."""

    def __init__(self, ranks: int) -> None:
        self.changed = threading.Condition()
        self.running, self.stuck, self.awaited = ranks, False, []
        self.here = threading.local()
        self.receives: dict[int, list[Message]] = {rank: [] for rank in range(ranks)}

    def isend(self, tensor: torch.Tensor, group: SerialGroup, group_dst: int) -> Message:
        return group.ask(self.here.rank, Message(tensor, group.ranks[group_dst], True, self))

    def irecv(self, tensor: torch.Tensor, group: SerialGroup, group_src: int) -> Message:
        message = group.ask(self.here.rank, Message(tensor, group.ranks[group_src], False, self))
        self.receives[self.here.rank].append(message)
        return message

    def idle(self) -> None:
        """Wait until nothing that this rank has asked to receive is under way."""
        for message in self.receives[self.here.rank]:
            message.wait()

    def look_for_a_way_on(self) -> None:
        if len(self.awaited) == self.running and not any(each.done for each in self.awaited):
            self.stuck = True
            self.changed.notify_all()

    def run(self, name: str, ranks: int, microbatches: int, links: dict) -> tuple[dict[int, float], float]:
        """Return the losses of the microbatches and the gradient of the first stage's weight."""
        actions, places = (
            schedule(name, ranks, microbatches, STAGES[name]),
            placement(name, ranks, STAGES[name]),
        )
        weight = torch.ones((), requires_grad=True)
        losses: dict[int, float] = {}
        errors: list[Exception] = []

        def stage(number: int):
            def compute(x: torch.Tensor | None, microbatch: int) -> torch.Tensor:
                self.idle()
                y = weight * torch.full(SHAPE, microbatch + 1.0) if x is None else x + number
                return y.sum() if number == ranks * STAGES[name] - 1 else y

            return compute

        def one(rank: int) -> None:
            self.here.rank = rank
            put_off = pipeline.WeightGradients()
            held = {number: stage(number) for number in places[rank]}
            try:
                run = pipeline.Pipeline(
                    *(held, actions, places, rank, links, SHAPE, torch.float32, torch.device("cpu")),
                    put_off=put_off,
                )
                losses.update({mb: loss.item() for mb, loss in run.run().items()})
            except Exception as error:
                errors.append(error)
            with self.changed:
                self.running -= 1
                self.look_for_a_way_on()

        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        if errors:
            raise errors[0]
        return losses, weight.grad.item()


def run(
    monkeypatch, name: str, ranks: int, microbatches: int, links: dict, lookahead: int | None = None
) -> None:
    """Fail unless the pipeline ends, with the losses and the gradient of one process."""
    world = SerialWorld(ranks)
    monkeypatch.setattr(pipeline, "dist", world)
    monkeypatch.setattr(pipeline, "LOOKAHEAD", {} if lookahead is None else {"cpu": lookahead})
    losses, gradient = world.run(name, ranks, microbatches, links)
    stages, size = ranks * STAGES[name], SHAPE[0]
    assert losses == {mb: size * (mb + 1 + sum(range(stages))) for mb in range(microbatches)}
    assert gradient == sum(size * (mb + 1) for mb in range(microbatches))


def of_two(ranks: int) -> dict[tuple[int, int], SerialGroup]:
    """Return what the mesh makes: a group for each way between two neighbours."""
    pairs = [pair for pairs in ring_pairs(ranks) for pair in pairs]
    return {way: SerialGroup(tuple(sorted(pair))) for pair in pairs for way in (pair, pair[::-1])}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(STAGES)), st.integers(1, 6), st.integers(1, 5))
def test_no_schedule_hangs_where_messages_keep_their_order(name, ranks, more):
    # What the schedules ask for: as many microbatches as stages, in multiples of the ranks.
    microbatches = ranks * more if name == "interleaved" else 2 * ranks + more
    with pytest.MonkeyPatch.context() as patch:
        run(patch, name, ranks, microbatches, of_two(ranks))


def test_receives_posted_ahead_would_hang_a_gpu(monkeypatch):
    """So the stand-in is strict enough to tell: the first stage waits for its first gradient before it computes."""
    with pytest.raises(StuckError):
        run(monkeypatch, "1f1b", 2, 4, of_two(2), lookahead=1)


def test_a_group_for_each_way_of_a_whole_pipeline_would_hang(monkeypatch):
    """With receives posted ahead, and a GPU that does not mind them. (Of two ranks it would be as good as links.)"""
    up, down = (SerialGroup(tuple(range(4))) for _ in range(2))
    shared = {(a, b): up if a < b else down for a in range(4) for b in range(4)}
    monkeypatch.setattr(SerialWorld, "idle", lambda _: None)
    with pytest.raises(StuckError):
        run(monkeypatch, "1f1b", 4, 8, shared, lookahead=2)
    run(monkeypatch, "1f1b", 4, 8, of_two(4), lookahead=2)


@pytest.mark.parametrize("n", range(1, 9))
def test_pairs_on_a_ring_meet_in_rounds(n):
    rounds = ring_pairs(n)
    pairs = [pair for each in rounds for pair in each]
    assert {frozenset(pair) for pair in pairs} == {
        frozenset((i, (i + 1) % n)) for i in range(n if n > 1 else 0)
    }
    assert len(pairs) == len({frozenset(pair) for pair in pairs})
    for each in rounds:
        assert len({end for pair in each for end in pair}) == 2 * len(each), (
            "nobody is in two pairs of a round"
        )
