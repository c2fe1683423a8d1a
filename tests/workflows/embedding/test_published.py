"""Scores on real graphs against published ones, and planned memory against measured."""

from __future__ import annotations

import pytest

from analysis.store import read_run
from workflows.embedding.config import EmbedConfig
from workflows.embedding.footprint import footprint

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
BLOGCATALOG = {"dim": 512, "projection": {"s": "sqrt_n"}}


def scores(embed, ranks: int, **sections) -> tuple[float, float]:
    """Return micro and macro F1 in percent at 10 % of the labels."""
    ended, run = embed(ranks, {"execution": {"checkpoint_every": 0}, **sections})
    assert ended.status == 0, ended.stderr
    streams = read_run(run.path).streams
    return tuple(100 * streams[name]["value"][0] for name in ("micro_f1", "macro_f1"))


def classification(labels, **keys) -> dict:
    return {"classification": {"labels": str(labels), "percents": [10.0], "shuffles": 3, **keys}}


def test_fastrp_on_blogcatalog_is_the_authors(embed, shared_data):
    path = shared_data("graphs/blogcatalog.mat")
    micro, macro = scores(
        embed, 2,
        graph={"path": str(path), "direction": "out"},
        embedding={**BLOGCATALOG, "weights": [0, 0, 1, 6.67], "normalization_strength": -0.64},
        eval=classification(path, C=0.1),
    )  # fmt: skip
    assert micro == pytest.approx(37.2, abs=0.6)
    assert macro == pytest.approx(22.7, abs=0.8)


def test_without_the_row_norm_blogcatalog_falls_as_published(embed, shared_data):
    """With the weights that were published for it: those of the test above stay over 31 without a row norm."""
    path = shared_data("graphs/blogcatalog.mat")
    weights = {"weights": [1, 1, 7.81, 45.28], "normalization_strength": -0.628}
    micro, _ = scores(
        embed, 1,
        graph={"path": str(path), "direction": "out"},
        embedding={**BLOGCATALOG, **weights, "row_l2": False},
        eval=classification(path, C=1.0),
    )  # fmt: skip
    assert micro < 31


@pytest.mark.parametrize(
    ("edges", "labels", "keys", "C", "least"),
    [
        ("kc_facebook_edges.csv", "kc_facebook_target.csv", {"delimiter": ",", "header_lines": 1}, 10.0, 84),
        ("prone_dblp.ungraph", "prone_dblp.cmty", {}, 1.0, 55),
        ("prone_PPI.ungraph", "prone_PPI.cmty", {}, 1.0, 18),
    ],
)
def test_prone_reaches_what_its_authors_code_does(embed, shared_data, edges, labels, keys, C, least):
    """Their code leaves out self-loops, of which PPI has 894; with them, ours scores 18.0 there and 18.2 without."""
    graph = {"path": str(shared_data(f"graphs/{edges}")), "duplicates": "one", "self_loops": "drop"}
    micro, _ = scores(
        embed, 2,
        graph={**graph, **keys},
        embedding={"method": "prone", "dim": 128},
        eval=classification(shared_data(f"graphs/{labels}"), C=C, standardize=False, shuffles=5, **keys),
    )  # fmt: skip
    assert micro >= least


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("graph", "method"),
    [
        ({"rmat": {"scale": 18}}, "fastrp"),
        ({"rmat": {"scale": 16, "edge_factor": 64}}, "fastrp"),
        ({"rmat": {"scale": 18}, "partition": "label_propagation"}, "fastrp"),
        ({"rmat": {"scale": 18}}, "prone"),
    ],
)
def test_the_plans_memory_is_within_15_percent_of_the_measured(embed, ranks, graph, method):
    config = {"graph": graph, "embedding": {"method": method}, "execution": {"checkpoint_every": 0}}
    ended, run = embed(ranks, config)
    assert ended.status == 0, ended.stderr
    planned = footprint(EmbedConfig.model_validate(config), ranks).fullest.peak_bytes
    measured = read_run(run.path).summary["peak_bytes"]
    print(f"{method}, {ranks} ranks: planned {planned / measured:.3f} of the measured")
    assert planned == pytest.approx(measured, rel=0.15)


def test_leaves_of_the_facebook_graph_keep_its_classes(embed, shared_data):
    """Card of the partitioned method, check 3: four leaves and their border within 4 points of one leaf."""
    csv = {"delimiter": ",", "header_lines": 1}
    sections = {
        "graph": {"path": str(shared_data("graphs/kc_facebook_edges.csv")), "duplicates": "one", **csv},
        "eval": classification(shared_data("graphs/kc_facebook_target.csv"), C=1.0, **csv),
    }
    embedding = {"method": "partitioned", "dim": 128}
    one, _ = scores(embed, 1, embedding=embedding, **sections)
    four, _ = scores(embed, 2, embedding={**embedding, "leaves": {"entries": 90_000}}, **sections)
    print(f"micro-F1 at 10 %: {one:.2f} as one leaf, {four:.2f} as leaves of 90,000 entries")
    assert four == pytest.approx(one, abs=4)


@pytest.mark.parametrize(
    ("kind", "most"), [("rows", 40_000), ("label_propagation", 15_500), ("metis", 6_500)]
)
def test_dblps_rows_need_less_of_others_beside_their_neighbours(embed, shared_data, kind, most):
    """On 4 ranks, of 51,264 nodes: what a power sends is dim numbers of 4 bytes a row."""
    graph = {"path": str(shared_data("graphs/prone_dblp.ungraph")), "duplicates": "one", "partition": kind}
    ended, run = embed(4, {"graph": graph, "embedding": {"dim": 16}, "execution": {"checkpoint_every": 0}})
    assert ended.status == 0, ended.stderr
    [rows] = {each / (16 * 4) for each in read_run(run.path).streams["halo_bytes"]["value"].tolist()}
    print(f"{kind}: {rows:,.0f} halo rows")
    assert 5_000 < rows < most
