"""Embedding again once edges have changed: what is computed, and that nothing else comes of it."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.store import read_run
from tests.workflows.embedding.conftest import vectors
from workflows.embedding.config import EmbedConfig, mathematics

NODES = 400
RING = [(i, (i + step) % NODES) for i in range(NODES) for step in (1, 3)]
NEW = NODES, NODES + 1, NODES + 2
CHANGED = [edge for edge in RING if edge != (7, 8)] + [(100, 103), (250, NEW[0]), (NEW[1], NEW[2])]
"""An edge gone, one that now weighs 2, one to a new node, and one between two that no old one knows of."""


def config(path, edges: list[tuple[int, int]], update_of=None, **output) -> dict:
    path.write_text("".join(f"{a} {b}\n" for a, b in edges))
    return {
        "graph": {"path": str(path)},
        "embedding": {"dim": 24, "weights": [0.5, 1.0, 2.0]},
        "execution": {"column_block": 16, "update_of": update_of and str(update_of)},
        "output": output,
    }


@pytest.fixture(scope="module")
def before(embed, tmp_path_factory):
    ended, run = embed(2, config(tmp_path_factory.mktemp("graph") / "edges.txt", RING, powers=True))
    assert ended.status == 0, ended.stderr
    return run


def reach(edges: list[tuple[int, int]], changed: set[int]) -> set[int]:
    """Return the nodes and their neighbours, looked up edge by edge."""
    return changed | {b for a, b in edges if a in changed} | {a for a, b in edges if b in changed}


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.full), 2])
def test_an_update_is_a_full_run_but_computes_what_changed_reaches(embed, before, tmp_path, ranks):
    ended, full = embed(1, config(tmp_path / "full.txt", CHANGED))
    assert ended.status == 0, ended.stderr
    ended, run = embed(ranks, config(tmp_path / "new.txt", CHANGED, before.path, powers=True))
    assert ended.status == 0, ended.stderr
    assert vectors(run).tobytes() == vectors(full).tobytes()
    assert not np.array_equal(vectors(run)[:NODES], vectors(before))
    changed, want = {7, 8, 100, 103, 250, *NEW}, []
    for _ in range(3):
        changed = reach(CHANGED, changed)
        want.append(len(changed))
    streams = read_run(run.path).streams
    assert streams["rows"]["value"].tolist() == want
    assert want[-1] < NODES / 4
    if ranks == 2:
        assert (
            0
            < streams["halo_bytes"]["value"].max()
            < read_run(before.path).streams["halo_bytes"]["value"].min()
        )
    ended, again = embed(2, config(tmp_path / "new.txt", CHANGED, run.path))
    assert ended.status == 0, ended.stderr
    assert read_run(again.path).streams["rows"]["value"].tolist() == [0, 0, 0], "nothing changed since"
    assert vectors(again).tobytes() == vectors(full).tobytes()


def test_powers_of_other_settings_are_refused(embed, before, tmp_path):
    wanted = config(tmp_path / "edges.txt", CHANGED, before.path)
    ended, run = embed(1, wanted | {"embedding": {"dim": 24, "seed": 5}})
    assert ended.status == 2
    assert "has no power-4.h5; a run with output.powers leaves one for each weight" in run.last_exit().cause
    ended, run = embed(2, wanted | {"embedding": {"dim": 24, "seed": 5, "weights": [1.0]}})
    assert ended.status == 2
    assert "was made with seed=0, this run has 5" in run.last_exit().cause


@pytest.mark.parametrize(
    "sections",
    [
        {"embedding": {"method": "randne"}},
        {"execution": {"overlap": True}},
        {"execution": {"wire": "bf16"}},
        {"graph": {"rmat": {"scale": 4}, "partition": "metis"}},
    ],
)
def test_powers_are_kept_only_where_rows_are_the_same_whoever_computes_them(sections):
    with pytest.raises(
        ValueError, match=r"powers and execution.update_of take embedding.method=fastrp without"
    ):
        EmbedConfig.model_validate({"graph": {"rmat": {"scale": 4}}, "output": {"powers": True}, **sections})


def test_an_update_is_the_same_run_as_one_in_full(tmp_path):
    wanted = config(tmp_path / "edges.txt", RING, "runs/before")
    updated, full = (EmbedConfig.model_validate(wanted | {"execution": e}) for e in ({"update_of": "x"}, {}))
    assert mathematics(updated) == mathematics(full)


@pytest.mark.parametrize(
    "sections", [{"execution": {"wire": "bf16"}}, {"graph": {"rmat": {"scale": 4}, "partition": "metis"}}]
)
def test_leaves_take_rows_where_they_are(sections):
    with pytest.raises(
        ValueError, match=r"method=partitioned takes graph.partition=rows, execution.wire=fp32"
    ):
        EmbedConfig.model_validate(
            {"graph": {"rmat": {"scale": 4}}, "embedding": {"method": "partitioned"}, **sections}
        )
