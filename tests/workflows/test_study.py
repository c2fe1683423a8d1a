"""A study expands into the runs it describes; whatever is wrong with it is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.rundir import RUN_ID
from slurm.strict_yaml import YamlError, dumps, loads
from tests.conftest import ROOT
from workflows.errors import ConfigError, RefusedError
from workflows.study import read_study

STUDY = """\
name: small
workflow: llm
base:
  model: {seq_len: 64}
  train: {tokens: 1e4}
sweep:
  grid:
    model.width: [16, 32]
    optimizer.lr: [1e-2, 3e-3]
holdout:
  - {model: {width: 48}, resources: {ranks: 2}}
"""


def read(tmp_path: Path, text: str, *overrides: str):
    (tmp_path / "study.yaml").write_text(text)
    return read_study(tmp_path / "study.yaml", list(overrides))


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_expands(path, tmp_path):
    (tmp_path / "edges.txt").write_text("0 1\n1 2\n")
    of_a_file = path.stem == "embedding_file"
    study = read_study(path, [f"base.graph.path={tmp_path / 'edges.txt'}"] if of_a_file else [])
    assert study.runs
    assert all(RUN_ID.fullmatch(run.id) for run in study.runs)


def test_a_grid_is_every_combination_and_hold_outs_are_kept_apart(tmp_path):
    study = read(tmp_path, STUDY)
    swept = [(r.config.model.width, r.config.optimizer.lr) for r in study.runs if not r.held_out]
    assert swept == [(16, 0.01), (16, 0.003), (32, 0.01), (32, 0.003)]
    [held_out] = [r for r in study.runs if r.held_out]
    assert (held_out.config.model.width, held_out.resources.ranks) == (48, 2)
    assert study.runs[0].id.startswith("width16-lr0.01-")


def test_isoflop_gives_each_width_the_tokens_that_its_budget_buys(tmp_path):
    text = STUDY.replace("train: {tokens: 1e4}", "train: {}").split("sweep:")[0]
    study = read(tmp_path, text + "sweep:\n  isoflop: {flops: [1e10, 2e10], widths: [16, 64]}\n")
    assert len(study.runs) == 4
    for run, flops in zip(study.runs, (1e10, 1e10, 2e10, 2e10), strict=True):
        step_flops = run.config.tokens_per_step * run.config.model.flops_per_token()
        assert run.size.c_flops == run.size.d_tokens * run.config.model.flops_per_token()
        assert 0 <= run.size.c_flops - flops < step_flops


def test_a_list_multiplies_with_the_other_factors(tmp_path):
    study = read(tmp_path, STUDY.replace("  grid:", "  list: [{train: {seed: 1}}, {train.seed: 2}]\n  grid:"))
    assert len(study.runs) == 9
    assert {run.config.train.seed for run in study.runs if not run.held_out} == {1, 2}


def test_a_run_keeps_its_id_when_only_layout_site_or_logging_change(tmp_path):
    ids = [run.id for run in read(tmp_path, STUDY).runs]
    same = [
        "resources.retries=3",
        "base.train.log_every=1",
        "base.parallel.backend=gloo",
        "base.parallel.microbatch=2",
    ]
    assert [run.id for run in read(tmp_path, STUDY, *same).runs] == ids
    other = [run.id for run in read(tmp_path, STUDY, "base.train.seed=1").runs]
    assert not set(ids) & set(other)


def test_the_id_is_stable_over_versions_of_the_suite(tmp_path):
    """A change here orphans every run that users have; it needs a reason and a line in the changelog."""
    assert read(tmp_path, STUDY).runs[0].id == "width16-lr0.01-74234093"


def test_the_kept_copy_of_a_study_is_the_same_study(tmp_path):
    study = read(tmp_path, STUDY, "base.model.layers=3", "name=other")
    assert loads(dumps(study.resolved)).data == study.resolved
    again = read(tmp_path, dumps(study.resolved))
    assert [run.id for run in again.runs] == [run.id for run in study.runs]
    assert again.directory == Path("runs/other")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("workflow: llm", "workflow: lmm"), "no workflow 'lmm'; there is llm"),
        (("name: small", "name: Not/A.Name"), ":1: name: holds"),
        (("name: small", "nmae: small"), ":1: nmae: unknown key; did you mean 'name'?"),
        (("{seq_len: 64}", "{seqlen: 64}"), ":4: base.model.seqlen: unknown key; did you mean 'seq_len'?"),
        (("{tokens: 1e4}", "{tokens: lots}"), ':5: base.train.tokens: holds "lots"'),
        (
            ("{tokens: 1e4}", "{tokens: 1e4, steps: 3}"),
            "exactly one of tokens, flops, steps; it holds tokens, steps",
        ),
        (("[16, 32]", "[16, 30]"), "model.width=30 is no multiple of model.head_width=16"),
        (("[16, 32]", "[16, wide]"), ':8: sweep.grid.model.width.1 (model.width): holds "wide"'),
        (("[16, 32]", "[]"), ":6: sweep: expands to no run"),
        (("[16, 32]", "[16, 16]"), "two runs of the sweep are the same run, width16-lr0.01-"),
        (("model.width:", "model.widht:"), "model.widht): unknown key; did you mean 'width'?"),
        (("ranks: 2", "ranks: 999"), "wants 999 ranks of 1 threads, site 'local' has"),
        (("ranks: 2", "rank: 2"), ":11: holdout.0.resources.rank (rank): unknown key; did you mean 'ranks'?"),
        (("ranks: 2", "ranks: 0"), ":11: holdout.0.resources.ranks"),
        (("{seq_len: 64}", "7"), ":8: sweep.grid.model.width.0: 'model' holds 7, which has no keys"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, change, sentence):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, STUDY.replace(*change))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("site=frontierr", "no site 'frontierr'"),
        ("analysis.law=chinchila", "no law 'chinchila'; there is "),
        ("analysis.law=none,", "no law 'none,'; there is "),
        ("analysis.laws=[none]", "study.yaml: analysis.laws: no law 'none'; there is "),
        ("analysis={law: none, laws: [power]}", "holds none, so that nothing is fitted"),
        ("analysis.hold={A: 1}", "analysis.hold.A: no parameter of chinchilla that can be held"),
        ("analysis.bootstrap_by=block", "resampling 'block': there is point, run and block:SIZE"),
        ("analysis.exclude=[nothing]", "no run 'nothing'; see the ids with `isoflop plan`"),
        (
            "base.train.global_batch=3",
            "train.global_batch = 3 is no multiple of 2, which is 2 data-parallel ranks",
        ),
        ("base.train.seed=[1", "expected"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, sentence):
    with pytest.raises(Exception, match=r".") as caught:
        read(tmp_path, STUDY, override)
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "- a\n", "text", "name: a\nname: b\n", "\tname: a\n"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises((ConfigError, YamlError), match=r"study\.yaml"):
        read(tmp_path, text)


def test_ranks_of_a_grid_tell_runs_of_one_result_apart(tmp_path):
    text = STUDY.split("sweep:")[0].replace("{tokens: 1e4}", "{tokens: 1e4, global_batch: 4}")
    study = read(tmp_path, text + "sweep: {grid: {resources.ranks: [1, 2]}}\n")
    assert [run.resources.ranks for run in study.runs] == [1, 2]
    names, hashes = zip(*(run.id.rsplit("-", 1) for run in study.runs), strict=True)
    assert names == ("ranks1", "ranks2")
    assert len(set(hashes)) == 1


def test_more_ranks_than_cores_must_be_asked_for(tmp_path):
    text = STUDY.split("sweep:")[0].replace("{tokens: 1e4}", "{tokens: 1e4, global_batch: 512}")
    with pytest.raises(ConfigError, match="wants 512 ranks of 1 threads, site 'local' has"):
        read(tmp_path, text, "resources.ranks=512")
    assert read(tmp_path, text, "resources.ranks=512", "resources.oversubscribe=true").runs


GPU_SITE = """\
name: ours
description: a machine of this user's own
launcher: srun
cores: 64
scheduler:
  queues: [{name: batch, options: [], bins: [{nodes: 4, hours: 2}]}]
  node_cores: 16
  node_gpus: 2
  gpu_of_l3: [1, 0]
  cores_of_l3: 8
"""


@pytest.mark.parametrize("backend", ["mpi4py", "gloo"])
def test_a_run_that_would_leave_its_gpus_idle_is_refused(tmp_path, backend):
    own = tmp_path / "own.yaml"
    own.write_text(GPU_SITE)
    settings = [f"site={own}", f"base.parallel.backend={backend}"]
    with pytest.raises(RefusedError) as caught:
        read(tmp_path, STUDY, *settings)
    assert caught.value.exit_code == 3
    assert str(caught.value).endswith(
        "each rank would get a GPU of site 'ours' and leave it idle, since "
        f"parallel.backend={backend} keeps tensors on CPUs; set base.parallel.backend=nccl, "
        "or take a site file without node_gpus"
    )
    own.write_text(
        "\n".join(line for line in GPU_SITE.splitlines() if "_l3" not in line and "gpus" not in line)
    )
    assert read(tmp_path, STUDY, *settings).runs


def test_ranks_hear_of_the_gpus_of_any_site(tmp_path):
    (tmp_path / "own.yaml").write_text(GPU_SITE)
    study = read(tmp_path, STUDY, f"site={tmp_path}/own.yaml", "base.parallel.backend=nccl")
    held = loads(study.run_yaml(study.runs[0], tmp_path)).data
    assert held["gpus"] == {"node_gpus": 2, "gpu_of_l3": [1, 0], "cores_of_l3": 8}
    plain = read(tmp_path, STUDY)
    assert "gpus" not in loads(plain.run_yaml(plain.runs[0], tmp_path)).data
