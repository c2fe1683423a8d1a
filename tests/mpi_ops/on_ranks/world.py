"""The groups a case runs over, each once with our backend and once with gloo, and the data it runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor

ONE_MIB = 2**20
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)
COUNTS = (0, 1, 7, 4097)
"""Nothing, one, odd, and more than a page; and, in the dtypes that models are trained in, 1 MiB."""


@dataclass(frozen=True)
class Pair:
    """The same ranks as a group of our backend and as one of gloo."""

    name: str
    mpi: dist.ProcessGroup
    gloo: dist.ProcessGroup

    @property
    def rank(self) -> int:
        return self.mpi.rank()

    @property
    def size(self) -> int:
        return self.mpi.size()


@dataclass(frozen=True)
class World:
    """This rank's place, and the groups it is in: all ranks, all ranks again, and every other rank."""

    comm: MPI.Intracomm
    pairs: list[Pair]

    @classmethod
    def of(cls, comm: MPI.Intracomm) -> World:
        everyone = list(range(comm.size))
        pairs = [
            Pair("world", dist.group.WORLD, dist.new_group(everyone, backend="gloo")),
            Pair("duplicate", dist.new_group(everyone), dist.new_group(everyone, backend="gloo")),
        ]
        for part in (everyone[::2], everyone[1::2]):
            mpi, gloo = (
                (dist.new_group(part, backend=name) for name in ("mpi4py", "gloo")) if part else (0, 0)
            )
            if comm.rank in part:
                pairs.append(Pair("split", mpi, gloo))
        return cls(comm, pairs)

    @property
    def rank(self) -> int:
        return self.comm.rank

    @property
    def size(self) -> int:
        return self.comm.size

    @contextmanager
    def meeting_after(self) -> Iterator[None]:
        """End the block together with all ranks, whatever happens in it; outside of what is tested."""
        try:
            yield
        finally:
            self.comm.Barrier()


def pattern(rank: int, count: int, dtype: torch.dtype, salt: int = 0) -> Tensor:
    """Return (count,) small whole numbers that differ by rank: their sums and products are exact in any dtype."""
    values = (torch.arange(count) * 5 + torch.arange(count) // 7 + 3 * rank + salt) % 4
    return (values % 2 if dtype is torch.bool else values).to(dtype)


def counts(dtype: torch.dtype) -> tuple[int, ...]:
    return (*COUNTS, ONE_MIB // dtype.itemsize) if dtype in (torch.float32, torch.bfloat16) else COUNTS


def same(got: Sequence[Tensor], want: Sequence[Tensor], what: str) -> None:
    """Fail unless the tensors are equal to the last bit."""
    assert len(got) == len(want), f"{what}: {len(got)} tensors, not {len(want)}"
    for place, (mine, its) in enumerate(zip(got, want, strict=True)):
        assert mine.dtype == its.dtype, f"{what}: {mine.dtype}"
        assert torch.equal(mine, its), (
            f"{what}, tensor {place}: {mine.flatten()[:8]}, not {its.flatten()[:8]}"
        )


Operation = Callable[[dist.ProcessGroup, torch.dtype, int], Sequence[Tensor]]


def like_gloo(world: World, operation: Operation, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    """Fail unless `operation(group, dtype, count)` gives what gloo gives, over all groups, dtypes and counts."""
    for pair in world.pairs:
        for dtype in dtypes:
            for count in counts(dtype):
                what = f"{pair.name} of {pair.size}, {dtype}, {count} elements"
                same(operation(pair.mpi, dtype, count), operation(pair.gloo, dtype, count), what)
