"""The result on disk, `vectors.h5`: `vectors` (nodes, dim) fp32 and `ids` (nodes,), written by all ranks together.

HDF5 places the vectors as one stretch of bytes. Rank 0 makes the file and says where that is; then every rank writes
its rows there, and a file appears under its name only when all of it is on disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from launch.agree import everywhere, on_root
from launch.errors import LaunchError
from launch.rundir import FILE_MODE
from workflows.embedding.graph import Graph
from workflows.embedding.problem import Blocks

SCHEMA = "isoflop-vectors/1"
BATCH_BYTES = 1 << 24
"""Rows that are put together at once, for writing."""


def write_vectors(graph: Graph, blocks: Blocks, path: Path, attributes: Mapping[str, str | int]) -> Path:
    """Write the vectors of all ranks and return the path of the file.

    Raises, on every rank the same:
        LaunchError: the file cannot be written.

    Cost: words of string ids are gathered; a broadcast and some barriers. Vectors do not travel.
    """
    comm = graph.comm
    beside = path.with_name(f".{path.name}")
    dim = sum(block.shape[1] for block in blocks)
    words = comm.gather(graph.words)

    def make() -> int:
        ids = _ids(graph.n_nodes, words or [])
        beside.unlink(missing_ok=True)
        with h5py.File(beside, "x", libver="latest") as file:
            file.attrs.update({"schema": SCHEMA, **attributes})
            file.create_dataset("ids", data=ids)
            space = h5py.h5s.create_simple((graph.n_nodes, dim))
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            made = h5py.h5d.create(file.id, b"vectors", h5py.h5t.IEEE_F32LE, space, settings)
            start = made.get_offset()
        os.chmod(beside, FILE_MODE)
        return int(start)

    def write() -> None:
        step = max(1, BATCH_BYTES // (4 * dim))
        with beside.open("r+b", buffering=0) as file:
            file.seek(start + graph.rows.start * dim * 4)
            for at in range(0, len(graph.rows), step):
                batch = np.concatenate([block[at : at + step].numpy() for block in blocks], axis=1)
                _write_all(file.fileno(), batch.astype("<f4", copy=False).tobytes())
            os.fsync(file.fileno())

    try:
        start = on_root(comm, make)
        everywhere(comm, write)
        on_root(comm, lambda: beside.rename(path))
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror or error}") from None
    return path


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _ids(n_nodes: int, words: list[dict[int, bytes]]) -> np.ndarray:
    """Return the id of each row: its number, or its word in bytes padded with zeros."""
    if not any(words):
        return np.arange(n_nodes)
    known = {number: word for each in words for number, word in each.items()}
    return np.array([known[number] for number in range(n_nodes)], dtype="S")
