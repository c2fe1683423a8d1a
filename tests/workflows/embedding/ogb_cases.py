"""Layouts and tasks of the Open Graph Benchmark on ranks; test_on_ranks.py judges them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI

from tests.workflows.embedding import ogb_layouts
from tests.workflows.embedding.graph_cases import config, dense
from workflows.embedding.config import EmbedConfig
from workflows.embedding.convert import readable
from workflows.embedding.errors import GraphError
from workflows.embedding.graph import Graph, load
from workflows.embedding.ogb import task_path
from workflows.embedding.ogb_scores import score_task
from workflows.embedding.workflow import prepare

NODES = ogb_layouts.NODES


@contextmanager
def directory(comm: MPI.Intracomm, write: Callable[[Path], Any]) -> Iterator[tuple[Path, Any]]:
    """Yield a directory that rank 0 has written, and what `write` returned."""
    place = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None))
    made = comm.bcast(write(place / "data") if comm.rank == 0 else None)
    try:
        yield place / "data", made
    finally:
        comm.Barrier()
        if comm.rank == 0:
            shutil.rmtree(place)


def loaded(comm: MPI.Intracomm, wanted: EmbedConfig, root: Path) -> Graph:
    """Return the graph as a run gets it."""
    if comm.rank == 0:
        prepare(wanted, root.parent)
    comm.Barrier()
    return load(comm, readable(wanted.graph, root.parent))


def scores(graph: Graph, wanted: EmbedConfig, root: Path, vectors: np.ndarray) -> dict[str, float]:
    """Return the score of each split, given the vectors of all nodes."""
    own = torch.from_numpy(vectors[graph.rows.start : graph.rows.stop]).float()
    blocks = [own[:, :2].contiguous(), own[:, 2:].contiguous()]
    path = task_path(wanted.graph, wanted.eval.ogb, root.parent)
    return {name: value for name, value, _ in score_task(graph, blocks, wanted.eval.ogb, path)}


def adjacency(edges: np.ndarray, nodes: int) -> np.ndarray:
    """Return how often each pair is joined, in both directions."""
    found = np.zeros((nodes, nodes))
    for a, b in edges.T:
        for i, j in {(a, b), (b, a)}:
            found[i, j] += 1
    return found


def test_ogbs_graphs_are_their_edges(comm: MPI.Intracomm) -> None:
    for binary in (False, True):
        with directory(comm, lambda root, of=binary: ogb_layouts.graph(root, of)) as (root, _):
            graph = loaded(comm, config({"path": str(root), "format": "ogb"}), root)
            np.testing.assert_array_equal(dense(graph), adjacency(ogb_layouts.edges(), NODES))
            one_way = loaded(comm, config({"path": str(root), "format": "ogb", "direction": "out"}), root)
            assert dense(one_way).sum() == 2 * NODES


def test_accuracy_is_that_of_the_likeliest_class(comm: MPI.Intracomm) -> None:
    """Nodes lie at the corner of their label; of the test's a quarter lies at another's."""
    labels = (np.arange(NODES) % 3)[:, None]
    for binary in (False, True):
        with directory(comm, lambda root, of=binary: ogb_layouts.node_task(root, labels, of)) as (
            root,
            split,
        ):
            wanted = config(
                {"path": str(root), "format": "ogb"}, eval={"ogb": {"metric": "accuracy", "C": 100.0}}
            )
            vectors = np.eye(3)[labels[:, 0]]
            moved = split["test"][:5]
            vectors[moved] = np.eye(3)[(labels[moved, 0] + 1) % 3]
            found = scores(loaded(comm, wanted, root), wanted, root, vectors)
            assert found == {"valid": 1.0, "test": 0.75}


def test_rocauc_is_the_share_of_pairs_in_order_averaged_over_tasks(comm: MPI.Intracomm) -> None:
    """A vector of which one column says something is ordered by it, whatever is fitted."""
    rng = np.random.default_rng(4)
    vectors = np.zeros((NODES, 3))
    vectors[:, 0] = rng.permutation(NODES)
    labels = (vectors[:, :1] + 25 * rng.standard_normal((NODES, 3)) > NODES / 2).astype(float)
    labels[:, 2] = 1.0  # a task without zeros does not count
    labels[rng.random((NODES, 3)) < 0.1] = np.nan
    with directory(comm, lambda root: ogb_layouts.node_task(root, labels)) as (root, split):
        wanted = config({"path": str(root), "format": "ogb"}, eval={"ogb": {"metric": "rocauc"}})
        found = scores(loaded(comm, wanted, root), wanted, root, vectors)
    for name in ("valid", "test"):
        truth, score = labels[split[name]], vectors[split[name], 0]
        want = [(score[truth[:, t] == 1][:, None] > score[truth[:, t] == 0]).mean() for t in (0, 1)]
        assert 0.5 < want[0] != want[1] < 1
        assert found[name] == pytest.approx(np.mean(want), rel=1e-12)


def test_links_are_scored_as_by_all_pairs(comm: MPI.Intracomm) -> None:
    vectors = np.random.default_rng(5).standard_normal((NODES, 5))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    with directory(comm, ogb_layouts.link_task) as (root, split):
        for metric, k in (("hits", 7), ("hits", 71), ("mrr", 50)):
            wanted = config({"path": str(root), "format": "ogb"}, eval={"ogb": {"metric": metric, "k": k}})
            found = scores(loaded(comm, wanted, root), wanted, root, vectors)
            for name in ("valid", "test"):
                part = split[name]
                if metric == "hits":
                    up, down = (
                        (unit[part[e][:, 0]] * unit[part[e][:, 1]]).sum(1) for e in ("edge", "edge_neg")
                    )
                    want = 1.0 if k > len(down) else np.mean([sum(b >= a for b in down) < k for a in up])
                else:
                    a = (unit[part["source_node"]] * unit[part["target_node"]]).sum(1)
                    b = (unit[part["source_node"]][:, None] * unit[part["target_node_neg"]]).sum(2)
                    want = np.mean(1 / (1 + ((b > a[:, None]).sum(1) + (b >= a[:, None]).sum(1)) / 2))
                assert found[name] == pytest.approx(want, rel=1e-12), (metric, k, name)


def test_mag240m_is_numbered_kind_after_kind(comm: MPI.Intracomm) -> None:
    with directory(comm, ogb_layouts.mag240m) as (root, made):
        cites = config(
            {"path": str(root), "format": "ogb_lsc"}, eval={"ogb": {"metric": "accuracy", "C": 100.0}}
        )
        graph = loaded(comm, cites, root)
        np.testing.assert_array_equal(dense(graph), adjacency(made["paper___cites___paper"], 50))
        assert scores(graph, cites, root, np.eye(3)[np.arange(50) % 3]) == {"valid": 1.0}
        every = config({"path": str(root), "format": "ogb_lsc", "relations": list(made)})
        ends = [made["paper___cites___paper"], made["author___writes___paper"] + np.array([[50], [0]])]
        ends.append(made["author___affiliated_with___institution"] + np.array([[50], [70]]))
        np.testing.assert_array_equal(
            dense(loaded(comm, every, root)), adjacency(np.concatenate(ends, 1), 75)
        )
        if comm.rank == 0:
            made["author___writes___paper"][1, 4] = 50
            path = root / "processed" / "author___writes___paper" / "edge_index.npy"
            np.save(path, made["author___writes___paper"])
        comm.Barrier()
        with pytest.raises(GraphError, match="author___writes___paper names paper 50; there are 50"):
            load(comm, readable(every.graph, root.parent))


def test_wikikg90m_is_heads_and_tails(comm: MPI.Intracomm) -> None:
    with directory(comm, ogb_layouts.wikikg90m) as (root, triples):
        graph = loaded(comm, config({"path": str(root), "format": "ogb_lsc"}), root)
        np.testing.assert_array_equal(dense(graph), adjacency(triples[:, [0, 2]].T, 41))
