"""Small graphs in the directories of the Open Graph Benchmark."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

NODES = 60


def packed(path: Path, rows: Any) -> None:
    """Write numbers, a row a line, as OGB packs them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(",".join(map(str, np.atleast_1d(row).tolist())) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()))


def edges() -> np.ndarray:
    """Return (2, edges), each once, of a ring with chords."""
    a = np.arange(NODES)
    return np.stack([np.concatenate([a, a]), np.concatenate([(a + 1) % NODES, (a * 7 + 3) % NODES])])


def graph(root: Path, binary: bool = False) -> None:
    """Write the graph alone."""
    if binary:
        (root / "raw").mkdir(parents=True)
        sizes = {"num_nodes_list": np.array([NODES]), "num_edges_list": np.array([2 * NODES])}
        np.savez_compressed(root / "raw" / "data.npz", edge_index=edges(), **sizes)
        return
    packed(root / "raw" / "edge.csv.gz", edges().T)
    packed(root / "raw" / "num-node-list.csv.gz", [NODES])
    packed(root / "raw" / "num-edge-list.csv.gz", [2 * NODES])


def node_task(root: Path, labels: np.ndarray, binary: bool = False) -> dict[str, np.ndarray]:
    """Write a graph with labels (nodes, tasks) and a split, and return the split."""
    graph(root, binary)
    if binary:
        np.savez_compressed(root / "raw" / "node-label.npz", node_label=labels)
    else:
        packed(root / "raw" / "node-label.csv.gz", labels)
    order = np.random.default_rng(0).permutation(NODES)
    split = dict(zip(("train", "valid", "test"), np.split(order, [30, 40]), strict=True))
    for name, nodes in split.items():
        packed(root / "split" / "time" / f"{name}.csv.gz", nodes)
    return split


def link_task(root: Path, seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """Write a graph with a split of links, what is scored by hits and by ranks, and return the split."""
    graph(root)
    rng = np.random.default_rng(seed)
    made = {}
    for name in ("train", "valid", "test"):
        made[name] = {
            "edge": rng.integers(0, NODES, (12, 2)),
            "edge_neg": rng.integers(0, NODES, (70, 2)),
            "source_node": rng.integers(0, NODES, 9),
            "target_node": rng.integers(0, NODES, 9),
            "target_node_neg": rng.integers(0, NODES, (9, 20)),
        }
        path = root / "split" / "time" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **made[name], year=np.int64(2016))
    return made


def mag240m(root: Path) -> dict[str, np.ndarray]:
    """Write a MAG240M of 50 papers, 20 authors and 5 institutions, and return its relations."""
    rng = np.random.default_rng(2)
    counts = {"paper": 50, "author": 20, "institution": 5}
    made = {}
    for name in (
        "paper___cites___paper",
        "author___writes___paper",
        "author___affiliated_with___institution",
    ):
        a, _, b = name.split("___")
        made[name] = np.stack([rng.integers(0, counts[a], 90), rng.integers(0, counts[b], 90)])
        (root / "processed" / name).mkdir(parents=True)
        np.save(root / "processed" / name / "edge_index.npy", made[name])
    (root / "processed" / "paper").mkdir()
    labels = np.where(np.arange(50) < 40, np.arange(50) % 3, np.nan).astype(np.float32)
    np.save(root / "processed" / "paper" / "node_label.npy", labels)
    np.savez(root / "meta.npz", **counts, num_classes=3)
    split = {"train": np.arange(0, 40, 2), "valid": np.arange(1, 40, 2), "test": np.arange(40, 50)}
    np.savez(root / "split_dict.npz", **split)
    return made


def wikikg90m(root: Path) -> np.ndarray:
    """Write a WikiKG90Mv2 of 40 entities and return its triples."""
    triples = np.random.default_rng(3).integers(0, [40, 6, 40], (100, 3))
    (root / "processed").mkdir(parents=True)
    np.save(root / "processed" / "train_hrt.npy", triples)
    np.savez(root / "meta.npz", num_entities=41, num_relations=6)
    return triples
