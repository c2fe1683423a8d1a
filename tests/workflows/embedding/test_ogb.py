"""Scores of the Open Graph Benchmark by hand, and what is wrong with a directory, before any rank starts."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.workflows.embedding import ogb_layouts
from workflows.embedding import evaluators
from workflows.embedding.config import EmbedConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.survey import survey
from workflows.embedding.workflow import prepare
from workflows.errors import ConfigError


def wanted(path, metric: str | None = None, **keys) -> EmbedConfig:
    task = {"ogb": {"metric": metric, **keys}} if metric else {}
    return EmbedConfig.model_validate({"graph": {"path": str(path), "format": "ogb"}, "eval": task})


def test_accuracy_by_hand():
    """Two of three known are right in the first task, one of four in the second."""
    truth = np.array([[0, 1.0], [2, 1], [np.nan, 1], [5, 0]])
    assert evaluators.accuracy(truth, np.array([[0, 1.0], [2, 0], [7, 0], [4, 2]])) == (2 / 3 + 1 / 4) / 2


def test_rocauc_by_hand():
    """Of the pairs (.9 .4), (.9 .5), (.5 .4), (.5 .5) three are in order and one is a tie; other tasks do not count."""
    truth = np.array([[1, 1.0], [1, np.nan], [0, 1], [0, 1], [np.nan, 1]])
    score = np.array([[0.9, 0], [0.5, 0], [0.4, 0], [0.5, 0], [99, 0]])
    assert evaluators.rocauc(truth, score) == [3.5 / 4]


def test_hits_by_hand():
    """The second best of what is none is 3: a tie with it is no hit."""
    up, down = np.array([4.0, 3.0, 2.0, 9.0]), np.array([1.0, 3.0, 5.0])
    assert evaluators.hits(2, up, down).tolist() == [True, False, False, True]
    assert evaluators.hits(1, up, down).tolist() == [False, False, False, True]
    assert evaluators.hits(4, up, down).all(), "there are fewer than four"


def test_reciprocal_ranks_by_hand():
    """None better; two better; and one better with two as good, of which the middle place is the third."""
    up = np.array([5.0, 5.0, 5.0])
    down = np.array([[1.0, 2, 3], [6, 7, 3], [8, 5, 5]])
    assert evaluators.reciprocal_ranks(up, down).tolist() == [1.0, 1 / 3, 1 / 3]
    assert math.isclose(evaluators.reciprocal_ranks(up[:1], np.array([[5.0, 0, 0]]))[0], 1 / 1.5)


def test_a_directory_says_how_large_its_graph_is(tmp_path):
    ogb_layouts.graph(tmp_path / "a")
    found = survey(wanted(tmp_path / "a").graph)
    assert (found.nodes, found.edges) == (ogb_layouts.NODES, 2 * ogb_layouts.NODES)
    ogb_layouts.mag240m(tmp_path / "b")
    mag = {"path": str(tmp_path / "b"), "format": "ogb_lsc"}
    assert survey(EmbedConfig.model_validate({"graph": mag}).graph).nodes == 50
    both = mag | {"relations": ["paper___cites___paper", "author___writes___paper"]}
    found = survey(EmbedConfig.model_validate({"graph": both}).graph)
    assert (found.nodes, found.edges) == (70, 180)


def edges(root, rows) -> None:
    ogb_layouts.packed(root / "raw" / "edge.csv.gz", rows)


LABELS = np.arange(ogb_layouts.NODES)[:, None] % 2


@pytest.mark.parametrize(
    ("spoil", "task", "sentence"),
    [
        (lambda p: (p / "raw" / "edge.csv.gz").unlink(), {}, "has neither raw/edge.csv.gz nor raw/data.npz"),
        (lambda p: (p / "raw" / "triplet-type-list.csv.gz").touch(), {}, "has nodes of several kinds"),
        (lambda p: (p / "raw" / "num-node-list.csv.gz").unlink(), {}, "num-node-list.csv.gz"),
        (lambda p: (p / "raw" / "edge.csv.gz").write_bytes(b"0,1\n"), {}, "edge.csv.gz: "),
        (lambda p: edges(p, [[0, 1], [2, 60]]), {}, "edge 1 is 2 60; ids are 0 to 59"),
        (lambda p: edges(p, [[0, 1, 2]]), {}, "3 columns and 1 graphs; edges have two, of one graph"),
        (lambda p: edges(p, [["0", "x"]]), {}, "edge.csv.gz: cannot be read as numbers"),
        (lambda p: (p / "raw" / "node-label.csv.gz").unlink(), {"metric": "accuracy"}, "node-label.csv.gz"),
        (lambda p: (p / "split" / "time" / "valid.csv.gz").unlink(), {"metric": "accuracy"}, "valid.csv.gz"),
        (lambda p: ogb_layouts.packed(p / "split" / "time" / "test.csv.gz", [60]), {"metric": "accuracy"},
         "node 60 is in a split, but labels are of nodes 0 to 59"),
        (lambda p: None, {"metric": "accuracy", "split": "species"}, "eval.ogb.split=species: "),
        (lambda p: None, {"metric": "hits"}, "valid.npz: cannot be read as arrays ([Errno 2] No such file"),
    ],
)  # fmt: skip
def test_a_directory_that_is_not_whole_is_named(tmp_path, spoil, task, sentence):
    root = tmp_path / "data"
    ogb_layouts.node_task(root, LABELS)
    spoil(root)
    with pytest.raises(GraphError) as caught:
        prepare(wanted(root, **task), tmp_path / "cache")
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2


class Foreign:
    """What no split of edges needs."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        ({"edge": np.array([[0, 1]])}, "split valid has no edge_neg, which eval.ogb.metric=hits takes"),
        (
            {"edge": np.array([[0, 1]]), "edge_neg": np.array([[0, 60]])},
            "split valid names node 60; ids are 0 to 59",
        ),
        ({"edge": np.array([Foreign()])}, "valid.npz: cannot be read as arrays (Object arrays"),
    ],
)
def test_a_split_of_links_that_cannot_be_scored_is_named(tmp_path, capsys, saved, sentence):
    ogb_layouts.link_task(tmp_path / "data")
    np.savez(tmp_path / "data" / "split" / "time" / "valid.npz", **saved)
    with pytest.raises(GraphError) as caught:
        prepare(wanted(tmp_path / "data", "hits"), tmp_path / "cache")
    assert sentence in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_a_pickle_is_not_opened_and_becomes_arrays_by_the_command_that_is_told(tmp_path, capfd):
    split = ogb_layouts.link_task(tmp_path / "data")
    place = tmp_path / "data" / "split" / "time"
    (place / "valid.npz").unlink()
    as_ogb = split["valid"] | {"edge": torch.from_numpy(split["valid"]["edge"]), "year": np.int64(2016)}
    torch.save(as_ogb | {"other": Foreign()}, place / "valid.pt")
    with pytest.raises(GraphError, match="is a pickle") as caught:
        prepare(wanted(tmp_path / "data", "hits"), tmp_path / "cache")
    told = [sys.executable, *shlex.split(str(caught.value).partition("run once: ")[2])[1:]]
    assert subprocess.run(told, timeout=60).returncode, "the command refuses what is no array"
    assert "executed" not in capfd.readouterr().out
    assert not (place / "valid.npz").exists()
    torch.save(as_ogb, place / "valid.pt")
    subprocess.run(told, check=True, timeout=60)
    prepare(wanted(tmp_path / "data", "hits"), tmp_path / "cache")
    with np.load(place / "valid.npz", allow_pickle=False) as held:
        assert all(np.array_equal(held[key], value) for key, value in split["valid"].items())


def test_arrays_that_are_cut_short_are_named(tmp_path):
    ogb_layouts.link_task(tmp_path / "data")
    path = tmp_path / "data" / "split" / "time" / "valid.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(GraphError, match=r"valid\.npz: cannot be read as arrays"):
        prepare(wanted(tmp_path / "data", "hits"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("graph", "metric", "sentence"),
    [
        ({"rmat": {"scale": 3}}, "accuracy", "eval.ogb takes a graph of format ogb or ogb_lsc, not rmat"),
        ({"path": "x", "format": "ogb_lsc"}, "mrr", "eval.ogb.metric=mrr: of ogb_lsc there is accuracy"),
    ],
)
def test_a_task_that_the_graph_does_not_have_is_refused(graph, metric, sentence):
    with pytest.raises(ValueError, match=sentence):
        EmbedConfig.model_validate({"graph": graph, "eval": {"ogb": {"metric": metric}}})


def test_a_task_of_nodes_needs_scikit_learn(tmp_path, monkeypatch):
    ogb_layouts.node_task(tmp_path / "data", LABELS)
    monkeypatch.setattr("workflows.embedding.workflow.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"eval.ogb needs scikit-learn"):
        prepare(wanted(tmp_path / "data", "accuracy"), tmp_path)
