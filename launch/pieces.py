"""Arrays cut into boxes: what a rank saves of one, what it wants, what a file holds, and whether that is all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of the array `name`, which one rank alone saves.

    Raises:
        ValueError: it is not a box of an array of that shape.
    """

    name: str
    array: NDArray[Any]
    shape: Shape
    """Of the whole array."""
    offset: Shape
    """Of this piece in it."""

    def __post_init__(self) -> None:
        check_inside(self.name, self.shape, self.offset, self.array.shape)


def whole(name: str, array: NDArray[Any]) -> Piece:
    """Return the piece of an array that is not cut."""
    return Piece(name, array, array.shape, (0,) * array.ndim)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The box of an array that a rank needs, under the array's name in a mapping."""

    whole_shape: Shape
    offset: Shape
    shape: Shape
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """A piece as a file of a checkpoint holds it: little-endian, row by row, from byte `start`.

    Raises:
        ValueError: it is not a box of an array of that shape.
    """

    name: str
    dtype: str
    whole_shape: Shape
    offset: Shape
    shape: Shape
    sha256: str
    file: str = ""
    start: int = 0

    def __post_init__(self) -> None:
        check_inside(self.name, self.whole_shape, self.offset, self.shape)

    @property
    def n_bytes(self) -> int:
        """Length in the file."""
        return np.dtype(self.dtype).itemsize * prod(self.shape)


def by_name(stored: Iterable[Stored]) -> dict[str, list[Stored]]:
    """Return the pieces of each array."""
    arrays: dict[str, list[Stored]] = {}
    for each in stored:
        arrays.setdefault(each.name, []).append(each)
    return arrays


def check_whole(arrays: Mapping[str, list[Stored]]) -> None:
    """Do nothing if the pieces of each array fill it, every place once.

    Raises:
        CheckpointError: they overlap, leave a gap, or are not of one array; the sentence names it.
    """
    for name, pieces in arrays.items():
        kinds = {kind(each.dtype, each.whole_shape) for each in pieces}
        if len(kinds) > 1:
            raise CheckpointError(f"array '{name}' is {' here, '.join(sorted(kinds))} there")
        shape = pieces[0].whole_shape
        if not _fill_once(shape, [(each.offset, each.shape) for each in pieces]):
            held = sum(prod(each.shape) for each in pieces)
            raise CheckpointError(
                f"the pieces of array '{name}' overlap or leave a gap: {held:,} elements for the "
                f"{prod(shape):,} places of {kinds.pop()}"
            )


def overlap(stored: Stored, want: Wanted) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return where the common part lies in the stored piece and where in the wanted box, None when there is none."""
    here, there = [], []
    for o, n, at, m in zip(stored.offset, stored.shape, want.offset, want.shape, strict=True):
        low, high = max(o, at), min(o + n, at + m)
        if low >= high:
            return None
        here.append(slice(low - o, high - o))
        there.append(slice(low - at, high - at))
    return tuple(here), tuple(there)


def kind(dtype: Any, shape: Shape) -> str:
    """Return what an array is, in words: `float32[4, 8]`."""
    return f"{np.dtype(dtype).name}{list(shape)}"


def _fill_once(shape: Shape, boxes: Iterable[tuple[Shape, Shape]]) -> bool:
    """Return whether boxes, (offset, shape) each, fill an array of `shape`, every place once.

    How often each place is covered follows from its differences along all axes, and those of one box are its
    corners, with signs. Where boxes fill a whole, their corners cancel but for the whole's own: no pair is compared.
    """
    left: Counter[Shape] = Counter()
    for sign, offset, extent in [(-1, (0,) * len(shape), shape), *((1, *box) for box in boxes)]:
        for far in product((False, True), repeat=len(shape)):
            corner = tuple(o + n * f for o, n, f in zip(offset, extent, far, strict=True))
            left[corner] += sign * (-1) ** sum(far)
    return not any(left.values())


def check_inside(name: str, whole_shape: Shape, offset: Shape, shape: Shape) -> None:
    """Do nothing if a box lies in an array of `whole_shape`. Raises ValueError."""
    if not (
        len(whole_shape) == len(offset) == len(shape)
        and all(min(o, n) >= 0 and o + n <= w for w, o, n in zip(whole_shape, offset, shape, strict=True))
    ):
        raise ValueError(
            f"array '{name}': {list(shape)} at {list(offset)} is no box of one of {list(whole_shape)}"
        )
