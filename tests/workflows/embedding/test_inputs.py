"""Graphs and labels in other forms than text, and what is wrong with them, before any rank starts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import io, sparse

from workflows.embedding import arrays
from workflows.embedding.config import ClassificationConfig, EmbedConfig, GraphConfig
from workflows.embedding.convert import convert, readable
from workflows.embedding.errors import GraphError
from workflows.embedding.labels import read_labels
from workflows.embedding.survey import survey
from workflows.embedding.workflow import prepare
from workflows.errors import ConfigError

NETWORK = sparse.csr_matrix(np.array([[0, 2.0, 0], [2, 0, 1], [0, 1, 0]]))
GROUP = sparse.csr_matrix(np.array([[1, 0], [0, 1], [1, 1]]))


def graph(path, **keys) -> GraphConfig:
    return GraphConfig.model_validate({"path": str(path), **keys})


def matlab(path, **matrices):
    io.savemat(path, matrices)
    return path


def npz(path, matrix=NETWORK):
    sparse.save_npz(path, matrix)
    return path


@pytest.mark.parametrize("name", ["a.mat", "a.npz"])
def test_a_matrix_is_converted_once_and_read_in_any_number_of_parts(tmp_path, name):
    path = tmp_path / name
    config = graph(matlab(path, network=NETWORK, group=GROUP) if name == "a.mat" else npz(path))
    first = convert(config.path, tmp_path / "cache")
    written = first.stat().st_mtime_ns
    assert convert(config.path, tmp_path / "cache").stat().st_mtime_ns == written
    ready = readable(config, tmp_path / "cache")
    assert (ready.kind, ready.nodes, ready.direction) == ("hdf5", 3, "out")
    for parts in (1, 3):
        found = [each for part in range(parts) for each in arrays.read_hdf5(ready, part, parts)]
        rows, columns, weights = (
            np.concatenate([getattr(e, name) for e in found]) for name in ("source", "target", "weight")
        )
        assert (sparse.coo_matrix((weights, (rows, columns)), (3, 3)) != NETWORK).nnz == 0
    assert survey(config).nnz == 4


def test_an_array_of_edges_is_read_whichever_way_it_lies(tmp_path):
    edges = np.array([[0, 1, 2, 5], [1, 2, 0, 0]])
    for name, array in (("wide", edges), ("tall", edges.T)):
        np.save(tmp_path / f"{name}.npy", array)
        config = graph(tmp_path / f"{name}.npy")
        found = [each for part in range(3) for each in arrays.read_npy(config, part, 3)]
        np.testing.assert_array_equal(np.concatenate([e.source for e in found]), edges[0])
        np.testing.assert_array_equal(np.concatenate([e.target for e in found]), edges[1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: matlab(p / "g.mat", other=np.eye(3)), "needs one square sparse matrix, or one called network"),
        (lambda p: npz(p / "g.npz", sparse.csr_matrix((2, 3))), "the matrix is 2 x 3, an adjacency is square"),
        (lambda p: npz(p / "g.npz", -NETWORK), "weight -2; weights are positive and finite"),
        (lambda p: (p / "g.npz").write_bytes(b"no zip") and p / "g.npz", "is no matrix that scipy.sparse"),
        (lambda p: (p / "g.mat").write_bytes(b"MATLAB 7.3 MAT-file") and p / "g.mat", "is MATLAB 7.3; save it"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_graph_is_named(tmp_path, make, sentence):
    with pytest.raises(GraphError) as caught:
        convert(str(make(tmp_path)), tmp_path / "cache")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((3, 3), int), "is int64 [3, 3]; edges are whole numbers (2, edges)"),
        (np.zeros((2, 4)), "is float64 [2, 4]; edges are whole numbers (2, edges)"),
        (np.array([[0, 1, -4], [1, 2, 0]]), "edge 2 is -4 0; ids are 0 to"),
    ],
)
def test_an_array_that_holds_no_edges_is_named(tmp_path, array, sentence):
    np.save(tmp_path / "g.npy", array)
    with pytest.raises(GraphError) as caught:
        list(arrays.read_npy(graph(tmp_path / "g.npy")))
    assert sentence in str(caught.value)


def labels(path, text: str, **keys):
    path.write_text(text)
    return read_labels(ClassificationConfig.model_validate({"labels": str(path), **keys}), path.parent, 10)


def test_labels_from_communities_and_from_lines(tmp_path):
    found = labels(tmp_path / "a.cmty", "3\t1\n1 7\n")
    assert found.nodes.tolist() == [1, 3, 7]
    assert found.marks.tolist() == [[True, True], [True, False], [False, True]]
    found = labels(tmp_path / "a.csv", "id,what\n9,red\n0,blue\n", delimiter=",", header_lines=1)
    assert found.nodes.tolist() == [0, 9]
    assert found.marks.sum(0).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.cmty", "1 2\n3 x\n", "a.cmty:2: 'x' is no node id"),
        ("a.txt", "1 2\n3\n", "a.txt:2: '3': a line is a node id and a label"),
        ("a.txt", "1 2\n10 2\n", "a.txt: node 10 has a label, but the graph's nodes are 0 to 9"),
    ],
)
def test_a_label_that_is_none_is_named(tmp_path, name, text, sentence):
    with pytest.raises(GraphError) as caught:
        labels(tmp_path / name, text)
    assert sentence in str(caught.value)


def test_labels_are_looked_at_before_a_rank_starts(tmp_path, monkeypatch):
    (tmp_path / "edges.txt").write_text("0 1\n1 2\n")
    config = EmbedConfig.model_validate(
        {
            "graph": {"path": str(tmp_path / "edges.txt")},
            "eval": {"classification": {"labels": str(tmp_path / "missing.cmty")}},
        }
    )
    with pytest.raises(GraphError, match=r"missing.cmty: No such file"):
        prepare(config, tmp_path)
    monkeypatch.setattr("workflows.embedding.workflow.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs scikit-learn"):
        prepare(config, tmp_path)


def test_metis_is_looked_for_before_a_rank_starts(tmp_path, monkeypatch):
    config = EmbedConfig.model_validate({"graph": {"rmat": {"scale": 3}, "partition": "metis"}})
    prepare(config, tmp_path)
    monkeypatch.setattr("workflows.embedding.workflow.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"graph.partition=metis needs pymetis: pip install '.\[locality\]'"
    ):
        prepare(config, tmp_path)
