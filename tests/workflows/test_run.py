"""Studies run for real: Parsl, mpiexec, ranks, HDF5; killed here and there, and finished all the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis import fit, read_table
from analysis.store import read_run
from launch import checkpoint
from launch.rundir import RunDir
from slurm.strict_yaml import load
from tests.launch import alone
from tests.workflows.conftest import ISOFLOP, SMALL
from workflows.fits import Source

LAW = """\
sweep:
  grid: {model.width: [16, 32, 48], train.steps: [4, 8, 16]}
holdout:
  - {model: {width: 32}, train: {steps: 40}, resources: {ranks: 2}}
"""


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def runs_of(study: Path) -> list[RunDir]:
    return [
        RunDir(path)
        for path in sorted((study.parent / "runs" / "small").iterdir())
        if (path / "run.yaml").exists()
    ]


def start(study: Path, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [ISOFLOP, "run", str(study), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def rank_pids(run: RunDir) -> list[int]:
    try:
        return json.loads(run.provenance.read_text())[str(max(run.attempts()))]["pids"]
    except (OSError, ValueError, KeyError):
        return []


def final_arrays(run: RunDir) -> dict:
    return alone.load(run.checkpoints).arrays


def assert_same_state(one: RunDir, other: RunDir) -> None:
    first, second = final_arrays(one), final_arrays(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture(scope="module")
def law_study(tmp_path_factory, text, isoflop):
    """A study of nine runs and a hold-out, run to its end once: (path, what the command printed)."""
    directory = tmp_path_factory.mktemp("law")
    path = directory / "small.yaml"
    body = SMALL.format(runs_dir=directory / "runs", text=text).replace(", steps: 10", "")
    path.write_text(
        body[: body.index("sweep:")] + LAW + "analysis: {bootstrap: 100, laws: [power, kaplan]}\n"
    )
    return path, isoflop("run", path, "--json", timeout_s=240)


@pytest.mark.timeout(300)
def test_a_study_ends_in_a_fit_and_a_report(law_study):
    path, done = law_study
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    assert [run["state"] for run in result["runs"]] == ["done"] * 10
    assert result["fit"]["n_points"] == 9
    [held_out] = result["holdout"]
    assert held_out["error"] == pytest.approx(held_out["predicted"] / held_out["measured"] - 1)
    assert {row["law"] for row in result["laws"]} == {"chinchilla", "power", "kaplan"}
    assert all(row["held_out_error"] < 0.5 for row in result["laws"])
    directory = path.parent / "runs" / "small"
    assert json.loads((directory / "fit.json").read_text())["params"] == result["fit"]["params"]
    assert "<svg" in (directory / "report.html").read_text()
    assert {p.name for p in (directory / "plots").iterdir()} >= {
        "loss_curves.png",
        "law.png",
        "hold_outs.png",
    }


@pytest.mark.timeout(300)
def test_everything_a_study_leaves_is_for_its_user_alone(law_study):
    path, _ = law_study
    open_to_others = [
        p
        for p in (path.parent / "runs").rglob("*")
        if stat.S_IMODE(p.stat().st_mode) & 0o077 and ".parsl" not in str(p)
    ]
    assert open_to_others == []
    assert stat.S_IMODE((path.parent / "runs" / "small" / ".parsl").stat().st_mode) == 0o700


@pytest.mark.timeout(300)
def test_a_studys_metrics_are_exported_and_fitted_again(law_study, isoflop, tmp_path):
    path, done = law_study
    told = json.loads(done.stdout)
    exported = isoflop("export", path.parent / "runs" / "small", "--to", "csv", "--out", tmp_path / "out")
    assert (exported.status, exported.stderr) == (0, "")
    steps, runs = (Path(line) for line in exported.stdout.split())
    small = {run["run_id"] for run in told["runs"] if not run["held_out"]}
    points = read_table(runs, {"N": "N_total", "D": "D_tokens", "L": "L_val", "run": "run"})
    kept = points.take(np.flatnonzero(np.isin(points.runs, list(small))))
    assert fit("chinchilla", kept, bootstrap=0).params == pytest.approx(told["fit"]["params"], rel=1e-6)
    named = {line.partition(",")[0] for line in steps.read_text().splitlines()[1:]}
    assert named == {run["run_id"] for run in told["runs"]}


@pytest.mark.timeout(300)
def test_the_store_holds_what_the_run_was(law_study):
    path, done = law_study
    for run in json.loads(done.stdout)["runs"]:
        metrics = read_run(path.parent / "runs" / "small" / run["run_id"])
        assert metrics.summary["N_total"] == run["N"]
        assert metrics.summary["D_tokens"] == run["D"] == metrics.streams["train_loss"]["tokens"][-1]
        assert metrics.summary["L_val"] == run["loss"] == metrics.streams["val_loss"]["value"][-1]
        assert metrics.meta["world_size"] == run["ranks"]
        assert metrics.streams["train_loss"]["value"][0] > metrics.streams["train_loss"]["value"][-1]


@pytest.mark.timeout(300)
def test_a_finished_study_is_not_run_again(law_study, isoflop):
    path, first = law_study
    before = sorted((path.parent / "runs").rglob("attempt-*"))
    again = isoflop("run", path, "--json")
    assert again.status == 0
    assert sorted((path.parent / "runs").rglob("attempt-*")) == before
    assert json.loads(again.stdout)["fit"]["params"] == json.loads(first.stdout)["fit"]["params"]


@pytest.mark.timeout(300)
def test_runs_may_be_compared_without_a_law(law_study, tmp_path, isoflop):
    path, _ = law_study
    shutil.copytree(path.parent / "runs", tmp_path / "runs")
    none = ("--set", f"runs_dir={tmp_path}/runs", "--set", "analysis={law: none}")
    done = isoflop("run", path, *none)
    assert done.status == 0, done.stderr
    assert "no fit" not in done.stdout
    page = (tmp_path / "runs" / "small" / "report.html").read_text()
    assert "No fit" not in page
    assert "id='speeds'" in page


@pytest.mark.timeout(300)
def test_the_reading_verbs_agree_with_each_other(law_study, isoflop):
    path, done = law_study
    directory = path.parent / "runs" / "small"
    status = json.loads(isoflop("status", directory, "--json").stdout)
    assert [s["state"] for s in status] == ["done"] * 10
    assert [s["tokens"] for s in status] == [s["d_tokens"] for s in status]
    params = json.loads(done.stdout)["fit"]["params"]
    assert json.loads(isoflop("report", directory, "--json").stdout)["fit"]["params"] == params
    assert (
        json.loads(isoflop("fit", "--data", directory, "--bootstrap", 100, "--json").stdout)["params"]
        == params
    )
    assert len(Source(data=directory).curves()) == 9, "a hold-out is no part of an envelope"
    text = isoflop("status", path).stdout
    assert all(s["run_id"] in text for s in status)
    assert "parameter" in isoflop("report", directory).stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, text, isoflop) -> RunDir:
    """One run of two ranks, from start to end without a disturbance."""
    directory = tmp_path_factory.mktemp("undisturbed")
    path = directory / "small.yaml"
    path.write_text(SMALL.format(runs_dir=directory / "runs", text=text))
    assert isoflop("run", path, *LONG).status in (0, 2)
    [run] = runs_of(path)
    return run


LONG = (
    "--set",
    "sweep.grid={model.width: [16]}",
    "--set",
    "base.train.steps=1500",
    "--set",
    "resources.ranks=2",
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_nothing_but_time(small, undisturbed, rank):
    driver = start(small, *LONG)
    wait_for(lambda: (small.parent / "runs" / "small").exists() and runs_of(small), "the run's directory")
    [run] = runs_of(small)
    wait_for(lambda: checkpoint.steps(run.checkpoints), "a checkpoint")
    os.kill(rank_pids(run)[rank], signal.SIGKILL)
    _, stderr = driver.communicate(timeout=120)
    assert run.state() == "done", stderr
    assert run.attempts() == [1, 2]
    assert run.exit_record(1).rank == rank
    assert run.exit_record(1).cause.endswith("(SIGKILL)")
    assert "starting it again" in stderr.decode()
    assert_same_state(run, undisturbed)
    one, other = read_run(run.path), read_run(undisturbed.path)
    for name in ("train_loss", "val_loss", "lr", "grad_norm"):
        for column in ("step", "tokens", "value"):
            np.testing.assert_array_equal(one.streams[name][column], other.streams[name][column])


@pytest.mark.timeout(300)
def test_a_killed_driver_is_followed_by_one_that_goes_on(small, undisturbed, isoflop):
    driver = start(small, *LONG)
    wait_for(lambda: (small.parent / "runs" / "small").exists() and runs_of(small), "the run's directory")
    [run] = runs_of(small)
    wait_for(lambda: checkpoint.steps(run.checkpoints), "a checkpoint")
    driver.kill()
    driver.communicate()
    refused_or_done = isoflop("run", small, *LONG)
    assert refused_or_done.status in (0, 2), refused_or_done.stderr
    assert run.state() == "done"
    assert run.attempts() == [1], "the ranks outlived their driver and were awaited, not repeated"
    assert_same_state(run, undisturbed)


@pytest.mark.timeout(300)
def test_ctrl_c_ends_in_order_and_the_same_command_goes_on(small, undisturbed, isoflop):
    driver = start(small, *LONG)
    wait_for(lambda: (small.parent / "runs" / "small").exists() and runs_of(small), "the run's directory")
    [run] = runs_of(small)
    wait_for(lambda: checkpoint.steps(run.checkpoints), "a checkpoint")
    second = isoflop("run", small, *LONG)
    assert second.status == 3
    assert "already being worked on by" in second.stderr
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to all that the driver has not kept from it
    stdout, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "interrupted; the same command goes on" in stdout.decode()
    assert run.state() == "requeue", "the ranks committed the step that they were in"
    assert run.last_exit().cause.startswith("SIGTERM: all ranks stopped after step ")
    assert checkpoint.steps(run.checkpoints)[-1] == run.last_exit().step
    assert "starting it again" not in stderr.decode()
    assert not any(Path(f"/proc/{pid}").exists() for pid in rank_pids(run))
    assert isoflop("run", small, *LONG).status in (0, 2)
    assert_same_state(run, undisturbed)


@pytest.mark.timeout(300)
def test_a_failing_run_fails_alone(small, isoflop):
    done = isoflop(
        "run", small, "--set", "sweep.grid={optimizer.lr: [1e-2, 1e30]}", "--set", "resources.retries=0"
    )
    assert done.status == 1
    good, bad = sorted(runs_of(small), key=lambda run: "1e30" in run.path.name)
    assert (good.state(), bad.state()) == ("done", "failed")
    assert f"{bad.path.name} failed with code 1 on rank 0: step" in done.stdout
    assert "lower optimizer.lr" in done.stdout
    assert str(bad.attempt(1, "err")) in done.stdout
    assert "Traceback" not in done.stdout + done.stderr + bad.attempt(1, "err").read_text()


@pytest.mark.timeout(300)
def test_another_text_under_a_started_run_is_refused(small, tmp_path, isoflop):
    mine = tmp_path / "mine.txt"
    mine.write_text("to be or not to be, that is the question\n" * 500)
    args = ("--set", f"base.data.source={mine}", "--set", "sweep.grid={model.width: [16]}")
    assert isoflop("run", small, *args).status == 2  # one run is too few for the law
    [run] = runs_of(small)
    run.attempt(1, "exit.json").unlink()  # as a kill right after the last checkpoint leaves it
    mine.write_text("whether it is nobler in the mind to suffer\n" * 500)
    done = isoflop("run", small, *args)
    assert done.status == 1
    assert "was trained on a text with SHA-256" in done.stdout
    assert run.attempts() == [1, 2], "a refusal is not tried again"


def test_a_run_directory_holds_the_exact_configuration(law_study):
    path, done = law_study
    for run in json.loads(done.stdout)["runs"]:
        held = load(path.parent / "runs" / "small" / run["run_id"] / "run.yaml").data
        assert held["id"] == run["run_id"]
        assert held["config"]["model"]["seq_len"] == 32
