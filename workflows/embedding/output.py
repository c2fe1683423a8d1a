"""The result on disk, written by all ranks together: `vectors.h5` with `vectors` (nodes, dim) fp32 and `ids` (nodes,).

HDF5 places a table as one stretch of bytes. Rank 0 makes the file and says where that is; then every rank writes its
rows there, and a file appears under its name only when all of it is on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from launch.agree import everywhere, on_root
from launch.errors import LaunchError
from launch.rundir import FILE_MODE
from workflows.embedding.graph import Graph
from workflows.embedding.problem import Blocks

SCHEMA = "isoflop-vectors/1"
BATCH_BYTES = 1 << 24
"""Rows that are put together at once, for writing."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a dataset, of which each rank holds those of its nodes: `rows(part)` returns some of its own."""

    dtype: str
    columns: int
    rows: Callable[[slice], NDArray[Any]]


def vectors_table(blocks: Blocks) -> Table:
    """Return the vectors as a table."""
    columns = sum(block.shape[1] for block in blocks)
    return Table("<f4", columns, lambda part: np.concatenate([b[part].numpy() for b in blocks], axis=1))


def array_table(array: NDArray[Any]) -> Table:
    """Return an array of this rank's rows as a table."""
    return Table(array.dtype.newbyteorder("<").str, array.shape[1], lambda part: array[part])


def write_hdf5(graph: Graph, tables: Mapping[str, Table], path: Path, attributes: Mapping[str, str]) -> None:
    """Write `ids` and the tables of all ranks to an HDF5 file.

    Raises, on every rank the same:
        LaunchError: the file cannot be written.

    Cost: words of string ids are gathered; a broadcast and some barriers. Tables do not travel.
    """
    words = graph.comm.gather(graph.words)

    def make(beside: Path) -> dict[str, int]:
        with h5py.File(beside, "x", libver="latest") as file:
            file.attrs.update({"schema": SCHEMA, **attributes})
            file.create_dataset("ids", data=_ids(graph.n_nodes, words or []))
            return {name: _placed(file, name, graph.n_nodes, table) for name, table in tables.items()}

    _write_together(graph, path, make, tables)


def write_npy(graph: Graph, vectors: Table, path: Path) -> None:
    """Write the vectors to a `.npy` file. Raises and Cost: as `write_hdf5`."""
    header = {"descr": vectors.dtype, "fortran_order": False, "shape": (graph.n_nodes, vectors.columns)}

    def make(beside: Path) -> dict[str, int]:
        with beside.open("xb") as file:
            np.lib.format.write_array_header_2_0(file, header)
            return {"vectors": file.tell()}

    _write_together(graph, path, make, {"vectors": vectors})


def write_word2vec(graph: Graph, vectors: Table, path: Path) -> None:
    """Write the vectors as text, rank after rank. Raises LaunchError on every rank.

    Cost: words of string ids are gathered; a barrier a rank.
    """
    words = graph.comm.gather(graph.words)
    ids = on_root(graph.comm, lambda: _ids(graph.n_nodes, words or []) if any(words or []) else None)
    beside = path.with_name(f".{path.name}")

    def write() -> None:
        step = max(1, BATCH_BYTES // (16 * vectors.columns))
        with open(os.open(beside, os.O_WRONLY | os.O_APPEND | os.O_CREAT, FILE_MODE), "w") as file:
            if graph.comm.rank == 0:
                file.truncate(0)
                file.write(f"{graph.n_nodes} {vectors.columns}\n")
            for at in range(0, len(graph.rows), step):
                for i, row in enumerate(vectors.rows(slice(at, at + step)), graph.rows.start + at):
                    name = str(i) if ids is None else ids[i].decode(errors="replace")
                    file.write(f"{name} {' '.join(f'{x:.7g}' for x in row.tolist())}\n")

    with _told(path):
        for rank in range(graph.comm.size):
            everywhere(graph.comm, write if rank == graph.comm.rank else lambda: None)
        on_root(graph.comm, lambda: beside.rename(path))


def _placed(file: h5py.File, name: str, n_nodes: int, table: Table) -> int:
    """Make a dataset that is one stretch of bytes, and return where it begins."""
    space = h5py.h5s.create_simple((n_nodes, table.columns))
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(np.dtype(table.dtype))
    return int(h5py.h5d.create(file.id, name.encode(), kind, space, settings).get_offset())


def _write_together(
    graph: Graph, path: Path, make: Callable[[Path], dict[str, int]], tables: Mapping[str, Table]
) -> None:
    """Let rank 0 make the file and say where tables begin, every rank write its rows, and the file take its name."""
    beside = path.with_name(f".{path.name}")

    def begin() -> dict[str, int]:
        beside.unlink(missing_ok=True)
        starts = make(beside)
        os.chmod(beside, FILE_MODE)
        return starts

    def write() -> None:
        with beside.open("r+b", buffering=0) as file:
            for name, table in tables.items():
                row_bytes = table.columns * np.dtype(table.dtype).itemsize
                step = max(1, BATCH_BYTES // row_bytes)
                file.seek(starts[name] + graph.rows.start * row_bytes)
                for at in range(0, len(graph.rows), step):
                    part = table.rows(slice(at, at + step)).astype(table.dtype, copy=False)
                    _write_all(file.fileno(), part.tobytes())
            os.fsync(file.fileno())

    with _told(path):
        starts = on_root(graph.comm, begin)
        everywhere(graph.comm, write)
        on_root(graph.comm, lambda: beside.rename(path))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn a failed write into the one sentence that a user needs."""
    try:
        yield
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror or error}") from None


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
