"""ParallelLayout: how many ranks stand along each axis of parallelism, and which rank stands where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from mpi_ops.errors import LayoutError

Axis = Literal["dp", "pp", "cp", "tp"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Degrees of each axis, by default slowest to fastest, so that tp neighbours are neighbouring ranks of one node.

    An `axis` is a direction of the rank grid, a `dim` one of a tensor. A rank's number is its place in the grid
    of the axes in their `order`, row by row. Expert parallelism adds no ranks: it divides dp,
    and so do the replicas of hybrid sharding.

    Raises:
        LayoutError: a degree is not a whole number of at least 1, ep or replicas do not divide dp, or the order
            does not name each axis once.
    """

    dp: int = 1
    """Data: each rank a share of the batch."""
    pp: int = 1
    """Pipeline: each rank some of the layers."""
    cp: int = 1
    """Context: each rank a stretch of the sequence."""
    tp: int = 1
    """Tensor: each rank a slice of every matrix."""
    ep: int = 1
    """Expert: so many neighbours along dp each hold a share of the experts."""
    replicas: int = 1
    """Groups of neighbours along dp that each share out one whole of the weights, gradients or moments (ZeRO)."""
    order: tuple[Axis, ...] = AXES
    """Axes from the slowest to the fastest."""

    def __post_init__(self) -> None:
        more = (("ep", self.ep), ("replicas", self.replicas))
        for axis, degree in (*zip(AXES, self.shape, strict=True), *more):
            if type(degree) is not int or degree < 1:
                raise LayoutError(f"parallel.{axis}={degree!r}: a degree is a whole number of at least 1")
        for axis, degree in more:
            if self.dp % degree:
                raise LayoutError(
                    f"parallel.{axis}={degree} does not divide the {self.dp} data-parallel ranks"
                )
        if sorted(self.order) != sorted(AXES):
            held = ", ".join(map(str, self.order))
            raise LayoutError(f"parallel.order=[{held}]: each of {', '.join(AXES)} once, the slowest first")

    @property
    def shape(self) -> tuple[int, ...]:
        """Degrees in the order of AXES."""
        return self.dp, self.pp, self.cp, self.tp

    @property
    def degrees(self) -> dict[str, int]:
        """Degree by axis, ep and replicas among them where there are any, as plans and metrics show it."""
        more = {"ep": self.ep, "replicas": self.replicas}
        return {**dict(zip(AXES, self.shape, strict=True)), **{name: n for name, n in more.items() if n > 1}}

    @property
    def world_size(self) -> int:
        """Number of ranks the layout needs."""
        return math.prod(self.shape)

    def check(self, world_size: int) -> None:
        """Do nothing if the layout needs exactly `world_size` ranks.

        Raises:
            LayoutError: it needs another number.
        """
        if self.world_size != world_size:
            product_of = "*".join(AXES)
            raise LayoutError(f"{product_of} = {self.world_size}, but {world_size} ranks were started")

    def coords(self, rank: int) -> dict[Axis, int]:
        """Return the place of `rank` along each axis.

        Raises:
            LayoutError: the rank is not in 0 ... world_size - 1.
        """
        if not 0 <= rank < self.world_size:
            raise LayoutError(f"rank {rank}: the ranks of {self} are 0 to {self.world_size - 1}")
        coords: dict[Axis, int] = {}
        degrees = self.degrees
        for axis in reversed(self.order):
            rank, coords[axis] = divmod(rank, degrees[axis])
        return {axis: coords[axis] for axis in AXES}

    def rank(self, coords: Mapping[Axis, int]) -> int:
        """Return the rank at `coords`, which names every axis; the inverse of `coords(rank)`.

        Raises:
            LayoutError: an axis is missing or unknown, or a place is outside the grid.
        """
        if set(coords) != set(AXES):
            raise LayoutError(f"coordinates {dict(coords)}: one for each of {', '.join(AXES)}")
        rank = 0
        for axis in self.order:
            degree = self.degrees[axis]
            if not 0 <= coords[axis] < degree:
                raise LayoutError(f"{axis}={coords[axis]}: places along {axis} are 0 to {degree - 1}")
            rank = rank * degree + coords[axis]
        return rank

    def axis_groups(self, axis: Axis) -> list[list[int]]:
        """Return every line of ranks along `axis`: world_size / degree lists, each in the axis's own order.

        Raises:
            LayoutError: there is no such axis.
        """
        if axis not in AXES:
            raise LayoutError(f"axis {axis!r}: one of {', '.join(AXES)}")
        faster = self.order[self.order.index(axis) + 1 :]
        stride = math.prod(self.degrees[each] for each in faster)
        span = stride * self.degrees[axis]
        starts = product(range(0, self.world_size, span), range(stride))
        return [list(range(outer + inner, outer + inner + span, stride)) for outer, inner in starts]
