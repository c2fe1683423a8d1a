"""ParallelLayout: how many ranks stand along each axis of parallelism, and which rank stands where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from itertools import product
from typing import Literal, get_args

from mpi_ops.errors import LayoutError

Axis = Literal["dp", "pp", "cp", "tp"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Degrees of each axis, slowest to fastest, so that tp neighbours are neighbouring ranks of one node.

    An `axis` is a direction of the rank grid, a `dim` one of a tensor. A rank's number is its place in the
    grid of `shape`, row by row.

    Raises:
        LayoutError: a degree is not a whole number of at least 1.
    """

    dp: int = 1
    """Data: each rank a share of the batch."""
    pp: int = 1
    """Pipeline: each rank some of the layers."""
    cp: int = 1
    """Context: each rank a stretch of the sequence."""
    tp: int = 1
    """Tensor: each rank a slice of every matrix."""

    def __post_init__(self) -> None:
        for axis, degree in zip(AXES, self.shape, strict=True):
            if type(degree) is not int or degree < 1:
                raise LayoutError(f"parallel.{axis}={degree!r}: a degree is a whole number of at least 1")

    @property
    def shape(self) -> tuple[int, ...]:
        """Degrees in the order of AXES: the shape of a DeviceMesh."""
        return astuple(self)

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
        for axis, degree in reversed(list(zip(AXES, self.shape, strict=True))):
            rank, coords[axis] = divmod(rank, degree)
        return {axis: coords[axis] for axis in AXES}

    def rank(self, coords: Mapping[Axis, int]) -> int:
        """Return the rank at `coords`, which names every axis; the inverse of `coords(rank)`.

        Raises:
            LayoutError: an axis is missing or unknown, or a place is outside the grid.
        """
        if set(coords) != set(AXES):
            raise LayoutError(f"coordinates {dict(coords)}: one for each of {', '.join(AXES)}")
        rank = 0
        for axis, degree in zip(AXES, self.shape, strict=True):
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
        at = AXES.index(axis)
        stride = math.prod(self.shape[at + 1 :])
        span = stride * self.shape[at]
        starts = product(range(0, self.world_size, span), range(stride))
        return [list(range(outer + inner, outer + inner + span, stride)) for outer, inner in starts]
