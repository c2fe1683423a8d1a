"""The Open Graph Benchmark's own directories, as its package unpacks them, read by the command and not by ranks.

```
raw/    edge.csv.gz, num-node-list.csv.gz, node-label.csv.gz      or data.npz, node-label.npz
split/NAME/    {train,valid,test}.csv.gz, a node a line           or {valid,test}.npz, arrays of edges
```
Of the large-scale challenge, MAG240M's `split_dict.npz` and labels; its graphs are read by `lsc`. OGB has a `.pt` in
the place of each such `.npz`, a pickle, which its user makes an `.npz` first.

What is to be scored becomes one HDF5 file for the ranks:

```
train, valid, test    nodes (nodes,) int64, labels (nodes, tasks) fp32, NaN where not known
valid, test           edge, edge_neg (pairs, 2); or source_node, target_node (n,), target_node_neg (n, others)
```
"""

from __future__ import annotations

import hashlib
import os
import shlex
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from launch.rundir import FILE_MODE, make_private
from workflows.embedding.config import GraphConfig, OgbConfig
from workflows.embedding.errors import GraphError

Ids = NDArray[np.int64]
SPLITS = ("train", "valid", "test")
LINKS = ("edge", "edge_neg", "source_node", "target_node", "target_node_neg")
"""What a split of edges may hold that is scored."""
CONVERT = (
    "import sys, torch, numpy as n; m = n._core.multiarray; "
    "named = [(made, f'numpy.{core}.multiarray.{made.__name__}') "
    "for made in (m._reconstruct, m.scalar) for core in ('core', '_core')]; "
    "torch.serialization.add_safe_globals([n.ndarray, n.dtype, *(type(n.dtype(c)) for c in '?bBhilqefd'), *named]); "
    "held = torch.load(sys.argv[1], weights_only=True); "
    "n.savez(sys.argv[2], **{str(key): n.asarray(value) for key, value in held.items()})"
)
"""For users to run on a .pt: torch takes tensors, arrays and numbers out of it, and refuses all else unexecuted."""


def edge_file(path: str) -> Path:
    """Return the file with the edges. Raises GraphError where the directory has none."""
    raw = Path(path) / "raw"
    if (raw / "triplet-type-list.csv.gz").exists():
        raise GraphError(f"{path}: has nodes of several kinds; a graph of one kind is needed")
    for name in ("edge.csv.gz", "data.npz"):
        if (raw / name).is_file():
            return raw / name
    raise GraphError(
        f"graph.path: {path}: has neither raw/edge.csv.gz nor raw/data.npz, as OGB's directories have"
    )


def read_edges(path: str) -> tuple[Ids, Ids, int]:
    """Return sources, targets and the number of nodes. Raises GraphError: a file that is missing or holds no edges."""
    file = edge_file(path)
    if file.suffix == ".npz":
        held = _npz(file)
        ends, nodes = held["edge_index"].astype(np.int64), held["num_nodes_list"]
    else:
        ends = _csv(file, np.int64).T
        nodes = _csv(file.with_name("num-node-list.csv.gz"), np.int64).ravel()
    if len(ends) != 2 or len(nodes) != 1:
        raise GraphError(f"{file}: {len(ends)} columns and {len(nodes)} graphs; edges have two, of one graph")
    wrong = np.flatnonzero(((ends < 0) | (ends >= nodes[0])).any(0))
    if len(wrong):
        a, b = ends[:, wrong[0]]
        raise GraphError(f"{file}: edge {wrong[0]} is {a} {b}; ids are 0 to {nodes[0] - 1}")
    return ends[0], ends[1], int(nodes[0])


def task_path(graph: GraphConfig, wanted: OgbConfig, cache_dir: Path) -> Path:
    """Return where a task's file goes: a name for the directory and the split."""
    told = f"{Path(graph.path or '').resolve()} {wanted.split} {wanted.metric}"
    return cache_dir / f"task-{hashlib.sha256(told.encode()).hexdigest()[:16]}.h5"


def prepare_task(graph: GraphConfig, wanted: OgbConfig, n_nodes: int, cache_dir: Path) -> None:
    """Write the file of what is to be scored, anew each time.

    Raises:
        GraphError: a file of the split is missing or names a node that is not there.
    """
    root = Path(graph.path or "")
    if wanted.metric in ("hits", "mrr"):
        parts = {name: _links(_split(root, wanted) / f"{name}.pt") for name in SPLITS[1:]}
        keys = (
            ("edge", "edge_neg")
            if wanted.metric == "hits"
            else ("source_node", "target_node", "target_node_neg")
        )
    else:
        parts = _challenge(root) if graph.kind == "ogb_lsc" else _nodes(root, wanted)
        keys = ("nodes", "labels")
    for name, part in parts.items():
        if missing := [key for key in keys if key not in part]:
            raise GraphError(
                f"{root}: split {name} has no {missing[0]}, which eval.ogb.metric={wanted.metric} takes"
            )
        for key in (key for key in keys if key != "labels"):
            outside = part[key][(part[key] < 0) | (part[key] >= n_nodes)]
            if outside.size:
                raise GraphError(f"{root}: split {name} names node {outside[0]}; ids are 0 to {n_nodes - 1}")
    _write(task_path(graph, wanted, cache_dir), parts, keys)


def read_saved(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays that OGB saved as `path`, a .pt, from the .npz beside it: a .pt is a pickle, and not opened.

    Raises:
        GraphError: there is no .npz, or it holds no arrays; where there is a .pt, the command that turns it into one.
    """
    arrays = path.with_suffix(".npz")
    if path.exists() and not arrays.exists():
        raise GraphError(
            f"{path}: is a pickle, and not opened here; to take the arrays out of it, and nothing else, run once: "
            + shlex.join(["python", "-c", CONVERT, str(path), str(arrays)])
        )
    return _npz(arrays)


def _nodes(root: Path, wanted: OgbConfig) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the nodes of each split and their labels."""
    binary = root / "raw" / "node-label.npz"
    labels = (
        _npz(binary)["node_label"].astype(np.float32)
        if binary.is_file()
        else _csv(root / "raw" / "node-label.csv.gz", np.float32)
    )
    split = _split(root, wanted)
    return {name: _labelled(_csv(split / f"{name}.csv.gz", np.int64).ravel(), labels) for name in SPLITS}


def _labelled(nodes: Ids, labels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return nodes, ascending, and their labels. Raises GraphError."""
    nodes = np.sort(nodes.astype(np.int64))
    outside = nodes[(nodes < 0) | (nodes >= len(labels))]
    if len(outside):
        raise GraphError(f"node {outside[0]} is in a split, but labels are of nodes 0 to {len(labels) - 1}")
    return {"nodes": nodes, "labels": labels[nodes].astype(np.float32).reshape(len(nodes), -1)}


def _challenge(root: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Return MAG240M's papers with labels, by split; those of its test are hidden."""
    path = root / "processed" / "paper" / "node_label.npy"
    try:
        labels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise GraphError(f"{path}: cannot be read as an array ({error})") from None
    split = read_saved(root / "split_dict.pt")
    return {name: _labelled(split[name], labels) if name in split else {} for name in SPLITS[:2]}


def _links(path: Path) -> dict[str, NDArray[Any]]:
    return {key: value.astype(np.int64) for key, value in read_saved(path).items() if key in LINKS}


def _split(root: Path, wanted: OgbConfig) -> Path:
    """Return the folder of the split: the one that is named, or the only one."""
    names = sorted(each.name for each in (root / "split").glob("*") if each.is_dir())
    if wanted.split is None and len(names) == 1:
        return root / "split" / names[0]
    if wanted.split not in names:
        raise GraphError(f"eval.ogb.split={wanted.split}: {root / 'split'} has {', '.join(names) or 'none'}")
    return root / "split" / str(wanted.split)


def _csv(path: Path, kind: type[np.generic]) -> NDArray[Any]:
    """Return the numbers of a packed file, (lines, columns)."""
    try:
        return np.loadtxt(path, kind, delimiter=",", ndmin=2)
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise GraphError(f"{path}: cannot be read as numbers ({error})") from None


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as held:
            return {key: held[key] for key in held if not key.startswith("node_feat")}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise GraphError(f"{path}: cannot be read as arrays ({error})") from None


def _write(final: Path, parts: dict[str, dict[str, NDArray[Any]]], keys: tuple[str, ...]) -> None:
    make_private(final.parent)
    beside = final.with_suffix(f".{os.getpid()}")
    with h5py.File(beside, "w", libver="latest") as file:
        for name, part in parts.items():
            for key in keys:
                file[f"{name}/{key}"] = part[key]
    os.chmod(beside, FILE_MODE)
    beside.rename(final)
