"""A mistake, or a machine that lets us down: one clear message, the contract's exit code, nothing half-written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from analysis.store import read_run
from launch import checkpoint
from launch.rundir import RunDir
from tests.workflows.conftest import SMALL
from workflows.llm.config import DataConfig
from workflows.llm.data import prepare_tokens

ONE_RUN = ("--set", "sweep.grid={model.width: [16]}")


def refused(done, code: int, sentence: str) -> None:
    assert done.status == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("  data:", "\tdata:"), "small.yaml:6: a tab character; indent with spaces"),
        (("workflow: llm", "workflow: llm\nworkflow: llm"), "small.yaml:3: key 'workflow' stands already on line 2"),
        (("seq_len: 32", "seq_lem: 32"), "small.yaml:5: base.model.seq_lem: unknown key; did you mean 'seq_len'?"),
        (("seq_len: 32", "seq_len: long"), 'base.model.seq_len: holds "long", allowed is a valid integer'),
        (("[16, 32]", "[]"), "small.yaml:8: sweep: expands to no run"),
        (("[16, 32]", "[16, 24]"), "small.yaml:9: sweep.grid.model.width.1: model.width=24 is no multiple"),
        (("analysis:", "resources: {ranks: 99}\nanalysis:"), "wants 99 ranks of 1 threads, site 'local' has"),
        (("name: small", "name: ../small"), 'small.yaml:1: name: holds "../small"'),
    ],
)  # fmt: skip
def test_a_wrong_study_is_refused_before_anything_is_made(small, isoflop, change, sentence):
    assert change[0] in small.read_text()
    small.write_text(small.read_text().replace(*change))
    for verb in ("plan", "run"):
        refused(isoflop(verb, small), 2, sentence)
    assert list(small.parent.iterdir()) == [small]


@pytest.fixture
def other_tokens(tmp_path, text) -> Path:
    """Return a token file whose header names a tokenizer that this suite does not have."""
    made = prepare_tokens(DataConfig(source=str(text)), 256, tmp_path / "tokens").path
    header = made.with_suffix(".json")
    header.write_text(header.read_text().replace('"byte"', '"bpe"'))
    return made


def test_a_text_that_cannot_be_used_is_named_before_a_rank_starts(small, tmp_path, isoflop, other_tokens):
    (tmp_path / "empty.txt").touch()
    for source, sentence in (
        (tmp_path / "missing.txt", f"data.source: no file '{tmp_path}/missing.txt'"),
        (tmp_path / "empty.txt", "holds no text, only empty files"),
        (other_tokens, "its tokenizer is bpe, it should be byte"),
    ):
        refused(isoflop("run", small, "--set", f"base.data.source={source}"), 2, sentence)
    assert list((tmp_path / "runs").rglob("attempt-*")) == []


def test_a_runs_directory_that_cannot_be_made_is_named(small, tmp_path, isoflop):
    (tmp_path / "file").touch()
    done = isoflop("run", small, "--set", f"runs_dir={tmp_path}/file/runs")
    refused(done, 1, f"{tmp_path}/file/runs/small: Not a directory; choose another `runs_dir`")


def test_too_few_runs_for_the_law_end_in_a_report_without_a_fit(small, isoflop):
    done = isoflop("run", small, *ONE_RUN)
    assert done.status == 2
    assert "no fit:" in done.stdout
    assert (
        "1 points with 1 distinct N and 1 distinct D; the law 'chinchilla' of 5 free parameters "
        "needs at least 6" in done.stdout
    )
    directory = small.parent / "runs" / "small"
    assert "No fit" in (directory / "report.html").read_text()
    assert not (directory / "fit.json").exists()


@pytest.fixture
def small_disk(tmp_path):
    """Yield (directory, resize): a real file system that fills up."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)

    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=330k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("A FULL DISK WAS NOT TESTED: mounting a tmpfs needs root")
    yield place, resize
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.timeout(300)
def test_a_full_disk_costs_no_committed_step(text, tmp_path, small_disk, isoflop):
    disk, resize = small_disk
    study = tmp_path / "small.yaml"
    study.write_text(SMALL.format(runs_dir=disk / "runs", text=text))
    args = (study, *ONE_RUN, "--set", "base.train.steps=400", "--set", "resources.retries=0", "--json")
    done = isoflop("run", *args)
    [run] = [RunDir(path.parent) for path in (disk / "runs" / "small").glob("*/run.yaml")]
    assert done.status == 1, done.stdout + done.stderr
    [failure] = json.loads(done.stdout)["failures"]
    assert "bytes are free there" in failure["cause"] or "No space left" in failure["cause"]
    assert "Traceback" not in done.stderr + run.attempt(1, "err").read_text()
    kept = checkpoint.steps(run.checkpoints)
    assert kept, "the disk was full before anything was committed: this tests nothing"
    resize("50m")
    again = isoflop("run", *args)
    assert again.status == 2, again.stderr  # one run is too few for the law; the run itself is done
    assert run.state() == "done"
    assert read_run(run.path).meta["restore_step"] == kept[-1]
