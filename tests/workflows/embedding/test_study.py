"""Embedding studies through the command: planned, run on several numbers of ranks, fitted and reported."""

from __future__ import annotations

import json

import pytest

from analysis.store import read_run
from tests.conftest import ROOT
from tests.workflows.embedding.conftest import vectors
from workflows.study import read_study


def run_study(isoflop, tmp_path, *overrides: str, name: str = "embedding") -> dict:
    sets = [each for override in overrides for each in ("--set", override)]
    args = (ROOT / "studies" / f"{name}.yaml", "--set", f"runs_dir={tmp_path}/runs", *sets)
    done = isoflop("run", *args, "--json", timeout_s=500)
    assert done.status == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def check(study, told: dict, ranks: list[int]) -> None:
    runs = [study.run_dir(run) for run in study.runs]
    assert [read_run(run.path).summary["ranks"] for run in runs] == ranks
    assert len({vectors(run).tobytes() for run in runs}) == 1, "vectors depend on the number of ranks"
    assert (told["fit"]["law"], told["fit"]["n_points"]) == ("amdahl", len(ranks))
    page = (study.directory / "report.html").read_text()
    assert "Time and memory" in page
    assert (study.directory / "plots" / "scaling.png").exists()


def test_a_study_of_ranks_gives_one_result_and_the_law_of_its_times(isoflop, tmp_path):
    overrides = (
        "base.graph.rmat.scale=10",
        "base.embedding.dim=16",
        "sweep.grid={resources.ranks: [1, 2, 3]}",
    )
    told = run_study(isoflop, tmp_path, *overrides)
    study = read_study(ROOT / "studies" / "embedding.yaml", [f"runs_dir={tmp_path}/runs", *overrides])
    check(study, told, [1, 2, 3])
    told = json.loads(isoflop("status", tmp_path / "runs" / "embedding", "--json").stdout)
    assert [(each["state"], each["step"], each["tokens"] / each["d_tokens"]) for each in told] == [
        ("done", 4, pytest.approx(1, rel=0.05))
    ] * 3


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_study_of_a_real_graph_on_1_2_and_4_ranks(isoflop, tmp_path, shared_data):
    graph = f"base.graph.path={shared_data('graphs/prone_dblp.ungraph')}"
    told = run_study(isoflop, tmp_path, graph, name="embedding_file")
    study = read_study(ROOT / "studies" / "embedding_file.yaml", [f"runs_dir={tmp_path}/runs", graph])
    check(study, told, [1, 2, 4])


def test_a_study_of_a_file_that_is_not_there_is_a_sentence(isoflop, tmp_path):
    for verb in ("plan", "run"):
        done = isoflop(
            verb, ROOT / "studies" / "embedding_file.yaml", "--set", f"runs_dir={tmp_path}/runs",
            "--set", f"base.graph.path={tmp_path}/edges.txt",
        )  # fmt: skip
        assert done.status == 2
        assert f"graph.path: {tmp_path}/edges.txt: No such file or directory" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_billion_edges_are_planned_without_touching_one(isoflop):
    done = isoflop("plan", ROOT / "studies" / "embedding_frontier.yaml", "--json")
    [run] = json.loads(done.stdout)["runs"]
    assert run["edges"] > 1e9
    assert run["ranks"] == 64
    assert 3e9 < run["memory_bytes"] < 4.5e9
    script = isoflop("render", ROOT / "studies" / "embedding_frontier.yaml").stdout
    assert "--ntasks=64" in script
    assert "workflows.embedding.program" in script
