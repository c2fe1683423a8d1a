"""Matrices that ranks cannot read their share of, made into one that they can: HDF5 with a line an edge.

```
source, target   (edges,) int64
weight           (edges,) fp32, where they are not all 1
labels           (labels, 2) int64: node, class; where the file has them
attribute nodes
```
This is done once, by the command and not by ranks: scipy opens thousands of files when it is imported.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from launch.rundir import FILE_MODE, make_private
from workflows.embedding import lsc, ogb
from workflows.embedding.config import GraphConfig
from workflows.embedding.errors import GraphError

CONVERTED = ("mat", "npz", "ogb")
MATLAB_7_3 = b"MATLAB 7.3"


def converted_path(path: str, cache_dir: Path) -> Path:
    """Return where a file's converted form goes: a name for its path, size and time."""
    try:
        held = os.stat(ogb.edge_file(path) if Path(path).is_dir() else path)
    except OSError as error:
        raise GraphError(f"graph.path: {path}: {error.strerror}") from None
    told = f"{Path(path).resolve()} {held.st_size} {held.st_mtime_ns}"
    return cache_dir / f"graph-{hashlib.sha256(told.encode()).hexdigest()[:16]}.h5"


def convert(path: str, cache_dir: Path) -> Path:
    """Return the converted form of a `.mat` or `.npz` file or a directory of OGB's, making it unless it is there.

    Raises:
        GraphError: the file holds no square sparse matrix; the sentence names what it holds.
    """
    final = converted_path(path, cache_dir)
    if not final.exists():
        make_private(cache_dir)
        beside = final.with_suffix(f".{os.getpid()}")
        if Path(path).is_dir():
            _write_edges(beside, *ogb.read_edges(path))
        else:
            labels, matrix = read_matrix(path)
            _write(path, beside, matrix.tocoo(), labels)
        beside.rename(final)
    return final


def readable(graph: GraphConfig, cache_dir: Path) -> GraphConfig:
    """Return the graph as ranks read it: a converted file in the place of one that they cannot share."""
    if graph.kind == "ogb_lsc":
        return graph.model_copy(update={"nodes": lsc.size(graph)[0]})
    if graph.kind not in CONVERTED or graph.path is None:
        return graph
    final = converted_path(graph.path, cache_dir)
    if not final.exists():
        raise GraphError(
            f"graph.path: {graph.path} was not converted for the ranks; `isoflop run` does so first"
        )
    with h5py.File(final, "r") as file:
        nodes = int(file.attrs["nodes"])
    direction = "out" if graph.direction == "both" and not graph.mirrored else graph.direction
    return graph.model_copy(
        update={"path": str(final), "format": "hdf5", "nodes": nodes, "direction": direction}
    )


def read_matrix(path: str) -> tuple[Any, Any]:
    """Return (labels or None, matrix), both scipy's."""
    from scipy import io, sparse

    if path.endswith(".npz"):
        try:
            return None, sparse.load_npz(path)
        except (ValueError, KeyError, OSError) as error:
            raise GraphError(f"{path}: is no matrix that scipy.sparse.save_npz wrote ({error})") from None
    with open(path, "rb") as file:
        if file.read(len(MATLAB_7_3)) == MATLAB_7_3:
            raise GraphError(f"{path}: is MATLAB 7.3; save it with -v7, or give its HDF5 as format hdf5")
    try:
        held = {name: value for name, value in io.loadmat(path).items() if sparse.issparse(value)}
    except (ValueError, TypeError, NotImplementedError) as error:
        raise GraphError(f"{path}: is no MATLAB file that can be read ({error})") from None
    square = [name for name, value in held.items() if value.shape[0] == value.shape[1]]
    name = "network" if "network" in square else square[0] if len(square) == 1 else None
    if name is None:
        known = ", ".join(f"{k} {v.shape}" for k, v in held.items()) or "none"
        raise GraphError(f"{path}: needs one square sparse matrix, or one called network; there is {known}")
    return held.get("group"), held[name]


def _write(path: str, beside: Path, matrix: Any, labels: Any) -> None:
    """Write edges, weights unless all are 1, and labels."""
    if matrix.shape[0] != matrix.shape[1]:
        raise GraphError(
            f"{path}: the matrix is {matrix.shape[0]} x {matrix.shape[1]}, an adjacency is square"
        )
    weight: NDArray[np.float32] = matrix.data.astype(np.float32)
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise GraphError(f"{path}: weight {weight[~(weight > 0)][0]:g}; weights are positive and finite")
    _write_edges(beside, matrix.row.astype(np.int64), matrix.col.astype(np.int64), matrix.shape[0])
    with h5py.File(beside, "r+", libver="latest") as file:
        if (weight != 1).any():
            file["weight"] = weight
        if labels is not None:
            of = labels.tocoo()
            file["labels"] = np.stack([of.row, of.col], 1).astype(np.int64)


def _write_edges(beside: Path, source: NDArray[np.int64], target: NDArray[np.int64], nodes: int) -> None:
    with h5py.File(beside, "x", libver="latest") as file:
        file.attrs["nodes"] = nodes
        file["source"], file["target"] = source, target
    os.chmod(beside, FILE_MODE)
