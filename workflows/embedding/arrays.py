"""Edges in arrays, read by stretches: HDF5 with `source` and `target`, or a `.npy` of (2, edges) or (edges, 2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from workflows.embedding.config import GraphConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.text import LARGEST_ID, Edges


def read_hdf5(graph: GraphConfig, part: int = 0, parts: int = 1) -> Iterator[Edges]:
    """Yield the edges of one of `parts` stretches of the arrays. Raises GraphError."""
    try:
        with h5py.File(graph.path, "r") as file:
            missing = {"source", "target"}.difference(file)
            if missing:
                raise GraphError(
                    f"{graph.path}: has no array '{min(missing)}'; it has {', '.join(file) or 'none'}"
                )
            yield from pieces(graph, file["source"], file["target"], file.get("weight"), part, parts)
    except OSError as error:
        raise GraphError(f"{graph.path}: cannot be read as HDF5 ({str(error).splitlines()[0]})") from None


def read_npy(graph: GraphConfig, part: int = 0, parts: int = 1) -> Iterator[Edges]:
    """Yield the edges of one of `parts` stretches of the array, which is mapped, not loaded. Raises GraphError."""
    ends = mapped(Path(graph.path or ""))
    yield from pieces(graph, ends[0], ends[1], None, part, parts)


def mapped(path: Path) -> Any:
    """Return an array of edges, (2, edges), as it lies in its file. Raises GraphError."""
    held = whole_numbers(path)
    if held.ndim != 2 or 2 not in held.shape:
        raise GraphError(f"{path}: is {held.dtype} {list(held.shape)}; edges are whole numbers (2, edges)")
    return held if held.shape[0] == 2 else held.T


def whole_numbers(path: Path) -> Any:
    """Return an array of whole numbers as it lies in its file. Raises GraphError."""
    try:
        held = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise GraphError(f"{path}: cannot be read as an array ({error})") from None
    if held.dtype.kind not in "iu":
        raise GraphError(f"{path}: is {held.dtype} {list(held.shape)}; edges are whole numbers (2, edges)")
    return held


def pieces(
    graph: GraphConfig, source: Any, target: Any, weight: Any, part: int, parts: int
) -> Iterator[Edges]:
    """Yield a stretch of arrays `chunk_bytes` at a time, checked."""
    lengths = {len(each) for each in (source, target, weight) if each is not None}
    if len(lengths) > 1:
        raise GraphError(f"{graph.path}: its arrays differ in length: {sorted(lengths)}")
    total = lengths.pop()
    first, last = total * part // parts, total * (part + 1) // parts
    step = max(1, graph.chunk_bytes // 16)
    below = min(LARGEST_ID, graph.nodes or LARGEST_ID)
    for at in range(first, last, step):
        rows = slice(at, min(at + step, last))
        ends = [np.asarray(each[rows]).astype(np.int64) for each in (source, target)]
        weights = None if weight is None else np.asarray(weight[rows]).astype(np.float32)
        wrong = (ends[0] < 0) | (ends[1] < 0) | (ends[0] >= below) | (ends[1] >= below)
        if weights is not None:
            wrong |= ~(np.isfinite(weights) & (weights > 0))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            shown = f"{ends[0][row]} {ends[1][row]}" + ("" if weights is None else f" {weights[row]:g}")
            raise GraphError(
                f"{Path(graph.path or '')}: edge {at + row} is {shown}; ids are 0 to {below - 1}, weights positive"
            )
        yield Edges(ends[0], ends[1], weights)
