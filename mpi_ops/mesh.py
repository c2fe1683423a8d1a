"""The groups of a layout as one rank sees them: its line of ranks along each axis, each on its own communicator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from mpi_ops.layout import Axis, ParallelLayout


@dataclass(frozen=True, slots=True)
class Mesh:
    """This rank's groups; None stands for a group of this rank alone."""

    layout: ParallelLayout
    rank: int
    tp: dist.ProcessGroup | None
    """Ranks with the other slices of the same matrices."""
    cp: dist.ProcessGroup | None
    """Ranks with the other stretches of the same sequences."""
    pp: Mapping[tuple[int, int], dist.ProcessGroup]
    """The ranks with the layers before and after, as (sender, receiver) by their places along pp: a group of the two
    for each way. NCCL does what a rank asks of a group one after another, so that among the messages of others, or
    of the other way, a receive that waits would hold up what its sender waits for."""
    data: dist.ProcessGroup | None
    """Ranks with the same weights and other tokens: along dp and cp together; gradients are reduced here."""
    ep: dist.ProcessGroup | None
    """Ranks with the other experts: neighbours along dp."""
    experts: dist.ProcessGroup | None
    """Ranks of `data` with the same experts; the gradients of experts are reduced here."""
    expert_shards: dist.ProcessGroup | None
    """The same, also where this rank alone has its experts, for ZeRO to share them out; None where all have all."""
    shards: dist.ProcessGroup | None
    """Ranks of `data` that share out one whole of what ZeRO shards: all of them, or those of one replica."""
    replicas: dist.ProcessGroup | None
    """Ranks of `data` with the same shards in other replicas."""
    ends: dist.ProcessGroup | None
    """First and last stage of this rank's pipeline, when it is one of them: tied weights are kept equal here."""

    def place(self, axis: Axis) -> int:
        """Return this rank's place along an axis."""
        return self.layout.coords(self.rank)[axis]

    @property
    def expert_place(self) -> int:
        """Which of the ep shares of the experts this rank holds."""
        return self.place("dp") % self.layout.ep

    @property
    def replica(self) -> int:
        """Which of the replicas this rank is in."""
        return self.place("dp") // (self.layout.dp // self.layout.replicas)


def make_mesh(layout: ParallelLayout, timeout_s: float = 600.0) -> Mesh:
    """Return the groups of this rank in the world that torch.distributed holds. Every rank calls it.

    An operation in one of them may take `timeout_s`: torch would give it half an hour, whatever the world has.

    Raises:
        LayoutError: the layout is not one of this world.

    Cost: an agreement among the members of each group, O(log P) messages; other ranks take no part.
    """
    rank, timeout = dist.get_rank(), timedelta(seconds=timeout_s)
    layout.check(dist.get_world_size())
    here = layout.coords(rank)
    data, pipeline = _line(layout, rank, ("dp", "cp")), _line(layout, rank, ("pp",))
    lines = {"tp": _line(layout, rank, ("tp",)), "cp": _line(layout, rank, ("cp",)), "data": data}
    groups = {name: _group(line, name, timeout) for name, line in lines.items()}
    groups |= {"ep": None, "experts": groups["data"], "expert_shards": None}
    if layout.ep > 1:
        share, place = divmod(here["dp"], layout.ep)
        places = {other: divmod(layout.coords(other)["dp"], layout.ep) for other in data}
        near = [other for other in _line(layout, rank, ("dp",)) if places[other][0] == share]
        same = [other for other in data if places[other][1] == place]
        groups["ep"], groups["expert_shards"] = (
            _new_group(near, "ep", timeout),
            _new_group(same, "experts", timeout),
        )
        groups["experts"] = groups["expert_shards"] if len(same) > 1 else None
    groups |= {"shards": groups["data"], "replicas": None}
    if layout.replicas > 1:
        places = {other: divmod(layout.coords(other)["dp"], layout.dp // layout.replicas) for other in data}
        inside = [other for other in data if places[other][0] == places[rank][0]]
        across = [other for other in _line(layout, rank, ("dp",)) if places[other][1] == places[rank][1]]
        groups |= {"shards": _group(inside, "data", timeout), "replicas": _group(across, "replicas", timeout)}
    ends = None
    if layout.pp > 1:
        at_end = here["pp"] in (0, layout.pp - 1)
        made = _new_group((pipeline[0], pipeline[-1]) if at_end else (rank,), "ends", timeout)
        ends = made if at_end else None
    return Mesh(
        layout,
        rank,
        tp=groups["tp"],
        cp=groups["cp"],
        pp=_links(pipeline, here["pp"], timeout),
        data=groups["data"],
        ep=groups["ep"],
        experts=groups["experts"],
        expert_shards=groups["expert_shards"],
        shards=groups["shards"],
        replicas=groups["replicas"],
        ends=ends,
    )


def _line(layout: ParallelLayout, rank: int, axes: Iterable[Axis]) -> list[int]:
    """Return the ranks that differ from `rank` along `axes` alone, ascending."""
    here = layout.coords(rank)
    same = {axis: place for axis, place in here.items() if axis not in tuple(axes)}
    return [
        other
        for other in range(layout.world_size)
        if all(layout.coords(other)[axis] == place for axis, place in same.items())
    ]


def _links(line: list[int], place: int, timeout: timedelta) -> dict[tuple[int, int], dist.ProcessGroup]:
    """Return the groups of this rank and each of its neighbours on the ring of `line`, one for each way.

    Cost: a message of one number each, over NCCL only.
    """
    links = {}
    for pairs in ring_pairs(len(line)):
        pair = next((pair for pair in pairs if place in pair), None)
        for way in (1, -1):
            made = _new_group([line[end] for end in pair] if pair else [line[place]], "pp", timeout)
            if pair:
                sender, receiver = pair[::way]
                links[sender, receiver] = made
                _open(made, place == sender, int(place == min(pair)))
    return links


def _open(link: dist.ProcessGroup, sends: bool, peer: int) -> None:
    """Send a first message over a link where NCCL carries them: it connects two ranks only then and holds each up
    until the other comes, which here is at once, and not in the middle of a schedule."""
    if dist.get_backend(link) == "nccl":
        nothing = torch.zeros(1, device=torch.device("cuda", torch.cuda.current_device()))
        if sends:
            dist.send(nothing, group=link, group_dst=peer)
        else:
            dist.recv(nothing, group=link, group_src=peer)


def ring_pairs(n: int) -> list[list[tuple[int, int]]]:
    """Return the pairs of neighbours on a ring of `n`, in rounds in which nobody is in two."""
    pairs = [(i, (i + 1) % n) for i in range(n if n > 2 else n - 1)]
    alone = pairs[-1:] if n % 2 else []
    even = pairs[: len(pairs) - len(alone)]
    return [pairs for pairs in (even[::2], even[1::2], alone) if pairs]


def _group(ranks: list[int], name: str, timeout: timedelta) -> dist.ProcessGroup | None:
    return _new_group(ranks, name, timeout) if len(ranks) > 1 else None


def _new_group(ranks: Iterable[int], name: str, timeout: timedelta) -> dist.ProcessGroup:
    """Return a group of this rank and others. All ranks of the world must make as many groups, in one order: torch
    counts them to name them, and NCCL splits the world's communicator, at which all ranks meet."""
    group: dist.ProcessGroup = dist.new_group(
        list(ranks), timeout=timeout, use_local_synchronization=True, group_desc=name
    )
    return group
