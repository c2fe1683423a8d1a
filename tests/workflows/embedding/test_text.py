"""Edge lists as text: any cut of the file gives the same edges, and a line that is none is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.config import parse
from workflows.embedding.config import EmbeddingConfig, GraphConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.survey import survey
from workflows.embedding.text import read_text
from workflows.errors import ConfigError


def graph(path, **keys) -> GraphConfig:
    return GraphConfig.model_validate({"path": str(path), "chunk_bytes": 1024, **keys})


def edges(config: GraphConfig, parts: int = 1) -> list[tuple[float, ...]]:
    found = []
    for part in range(parts):
        for each in read_text(config, part, parts):
            columns = [each.source, each.target, *([] if each.weight is None else [each.weight])]
            found += list(zip(*(column.tolist() for column in columns), strict=True))
    return found


lines = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 10**12), st.integers(0, 9)).map(lambda pair: f"{pair[0]}\t{pair[1]}"),
        st.sampled_from(["", "# a comment 1 2", "   ", "  # another"]),
    ),
    min_size=1,
    max_size=300,
)


@given(lines, st.integers(1, 9), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_number_of_parts_reads_every_line_once(tmp_path_factory, made, parts, end, last_ends):
    path = tmp_path_factory.mktemp("edges") / "edges.txt"
    path.write_bytes((end.join(made) + (end if last_ends else " ")).encode())
    want = [tuple(map(int, line.split())) for line in made if line.strip() and "#" not in line]
    assert edges(graph(path), parts) == want


def test_headers_delimiters_and_weights(tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("from;to;weight\na second; line; here\n3;4;0.5\n% no edge\n4;5;2e3\n")
    config = graph(path, header_lines=2, delimiter=";", comment="%", weighted=True)
    for parts in (1, 2, 5, 40):
        assert edges(config, parts) == [(3, 4, 0.5), (4, 5, 2000.0)]


@pytest.mark.parametrize(
    ("text", "keys", "sentence"),
    [
        ("0 1\n1\n", {}, "edges.txt:2: '1': 1 columns, an edge has 2: two node ids; the file may be cut off here"),
        ("0 1\n\n1 2 3\n", {}, "edges.txt:3: '1 2 3': 3 columns, an edge has 2: two node ids; graph.weighted takes"),
        ("# x\n0 a\n", {}, "edges.txt:2: '0 a': 'a' is no node id; ids are 0, 1, 2 ..., others need graph.ids"),
        ("0 1.5\n", {}, "edges.txt:1: '0 1.5': '1.5' is no node id"),
        ("0 -1\n", {}, "edges.txt:1: '0 -1': '-1' is no node id"),
        ("0 1\n0 7\n", {"nodes": 7}, "edges.txt:2: '0 7': node id 7 is out of range: ids are below graph.nodes=7"),
        ("0 99999999999999999999\n", {}, "node id 99999999999999999999 is out of range: ids are below 2^48"),
        ("0 1 1\n0 1 -2\n", {"weighted": True}, "edges.txt:2: '0 1 -2': weight -2; weights are positive and finite"),
        ("0 1 nan\n", {"weighted": True}, "edges.txt:1: '0 1 nan': weight nan"),
        ("0 1 heavy\n", {"weighted": True}, "edges.txt:1: '0 1 heavy': 'heavy' is no weight"),
        ("0.5 1 1\n", {"weighted": True}, "edges.txt:1: '0.5 1 1': '0.5' is no node id"),
        ("a b 0\n", {"weighted": True, "ids": "string"}, "edges.txt:1: 'a b 0': weight 0"),
        ("a b c\n", {"ids": "string"}, "edges.txt:1: 'a b c': 3 columns"),
        ("1 2 " * 2000, {}, "edges.txt: a line from byte 0 on is longer than 1,024 bytes: no edge list"),
        ("", {}, "edges.txt: is empty, a graph needs at least one edge"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_edge_is_named(tmp_path, text, keys, sentence):
    path = tmp_path / "edges.txt"
    path.write_text(text)
    with pytest.raises(GraphError) as caught:
        edges(graph(path, **keys))
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"path": "edges.txt.gz"}, "compressed, ranks could not read their share of it; unpack it first, to edges.txt"),
        ({}, "exactly one of path, rmat"),
        ({"path": "a", "rmat": {"scale": 3}}, "exactly one of path, rmat"),
        ({"path": "a", "delimiter": "#"}, "neither a line's end nor the comment sign"),
        ({"rmat": {"scale": 3}, "weighted": True}, "graph.rmat is unweighted, undirected"),
    ],
)  # fmt: skip
def test_a_graph_that_cannot_be_is_refused(keys, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(GraphConfig, keys, lambda at: "graph")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {"dim": 10, "features": "f.npy", "feature_ratio": 0.25},
            "0.25 of dim=10 columns is no whole number of them",
        ),
        ({"features": "f.npy"}, "embedding.features and a feature_ratio above 0 go together"),
        ({"method": "pron"}, "embedding.method=pron: there is fastrp, partitioned, prone, randne"),
        ({"projection": {"s": 0.5}}, "embedding.projection.s=0.5: a number of at least 1, or sqrt_n"),
    ],
)
def test_a_method_that_cannot_be_is_refused(keys, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(EmbeddingConfig, keys, lambda at: "embedding")
    assert sentence in str(caught.value)


def test_a_survey_counts_what_the_rows_will_hold(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("0 1\n1 0\n0 1\n2 2\n5 0\n")
    assert (survey(graph(path)).nodes, survey(graph(path)).edges) == (6, 5)
    assert survey(graph(path)).nnz == 5  # 0-1, 1-0, 2-2, 5-0, 0-5
    assert survey(graph(path, self_loops="drop")).nnz == 4
    assert survey(graph(path, direction="out")).nnz == 4
    assert survey(graph(path, nodes=9)).nodes == 9
    with pytest.raises(GraphError, match="No such file"):
        survey(graph(tmp_path / "missing.txt"))


def test_a_large_file_must_state_its_size(tmp_path):
    path = tmp_path / "edges.txt"
    with path.open("wb") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(
        GraphError, match=r"268,435,457 bytes, more than `plan` reads: state graph.nodes and graph.edges"
    ):
        survey(graph(path))
    stated = survey(graph(path, nodes=100, edges=1000))
    assert (stated.nodes, stated.nnz) == (100, 2000)


def test_the_survey_of_an_r_mat_graph_is_its_expected_size():
    from workflows.embedding.rmat import read_rmat

    config = GraphConfig.model_validate({"rmat": {"scale": 12}})
    ends = np.concatenate([np.stack([e.source, e.target]) for e in read_rmat(config)], 1)
    u, v = np.minimum(*ends), np.maximum(*ends)
    pairs = np.unique(np.stack([u, v], 1)[u != v], axis=0)
    assert ends.max() < 1 << 12
    assert survey(config).edges == ends.shape[1] == 16 << 12
    assert survey(config).nnz == pytest.approx(2 * len(pairs), rel=0.01)
    named = np.sort(np.bincount(pairs.ravel(), minlength=1 << 12))
    expected = sorted(survey(config).degrees, key=lambda each: each[1])
    assert named[-1] == pytest.approx(expected[-1][1], rel=0.1)  # the hub
    heavy = sum(n * k for n, k in expected if k > 100) / survey(config).nnz
    assert named[named > 100].sum() / named.sum() == pytest.approx(heavy, abs=0.05)
