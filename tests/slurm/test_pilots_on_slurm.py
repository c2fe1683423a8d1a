"""Studies on a real Slurm of four nodes: allocations that runs share, and what may become of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from analysis.store import read_run
from launch.rundir import RunDir
from tests.conftest import ROOT
from tests.slurm.conftest import CLUSTER, Cluster
from tests.workflows.conftest import ISOFLOP

LONG = ("--set", "base.train.steps=1500", "--set", "base.train.checkpoint_every=20")
ACROSS = ("--set", "base.train.steps=60", "--set", "sweep.grid={model.width: [16]}")
ONE = ("--set", "sweep.grid={model.width: [16]}")
HUNGRY = """\
import glob, os, sys, threading, time

def eat(checkpoints):
    while not glob.glob(checkpoints + "/step-*"):
        time.sleep(0.05)
    held = []
    while True:
        held.append(b"x" * 50_000_000)
        time.sleep(0.05)

if sys.orig_argv[-2:] == ["--attempt", "1"] and os.environ.get("SLURM_PROCID") == "1":
    threading.Thread(target=eat, args=(sys.orig_argv[-3] + "/checkpoints",), daemon=True).start()
"""
"""A `sitecustomize` with which rank 1 of a first attempt takes more and more memory, once there is a checkpoint."""
PAIR = ("--set", "resources={ranks: 2, threads: 5, retries: 2}", "--set", "pilots={nodes: 2, walltime: '10'}")


def runs_of(study: Path) -> list[RunDir]:
    """Return the runs whose directories exist."""
    return [RunDir(path) for path in sorted((study.parent / "runs" / "small").glob("width*"))]


def committed(study: Path) -> RunDir | None:
    """Return a run that is at work and has a checkpoint."""
    found = [run for run in runs_of(study) if run.attempts() and run.state() == "running"]
    return next((run for run in found if run.committed_step() > 0), None)


@pytest.fixture
def driver(small):
    """Return `start(*args)`: `isoflop run` of the small study on the loopback site, ended with the test."""
    started: list[subprocess.Popen] = []

    def start(*args: str) -> subprocess.Popen:
        argv = [ISOFLOP, "run", str(small), "--site", "loopback", "--json", *args]
        started.append(
            subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdout, process.stderr):
            pipe.close()
        process.wait(timeout=30)


def hosts(run: RunDir, attempt: int) -> list[str]:
    return sorted(json.loads(run.provenance.read_text())[str(attempt)]["hosts"])


@pytest.mark.timeout(240)
def test_a_study_shares_an_allocation_and_outlives_the_loss_of_a_node(
    cluster: Cluster, small, driver, isoflop
):
    process = driver(*ACROSS, *PAIR)
    run = cluster.until(lambda: committed(small))
    held = json.loads(run.provenance.read_text())["1"]
    node = next(host for host, ranks in held["hosts"].items() if 1 in ranks)
    os.kill(held["pids"][1], signal.SIGSTOP)  # so that the run does not end before its node is lost
    assert isoflop("run", small, "--site", "loopback").status == 3, "a second driver refuses"
    cluster.call(CLUSTER, "lose", cluster.directory, node)
    try:
        stdout, stderr = process.communicate(timeout=200)
    finally:
        cluster.call(CLUSTER, "boot", cluster.directory, node)
    assert [held["state"] for held in json.loads(stdout)["runs"]] == ["done"], stderr
    first = run.exit_record(1)
    assert first.code == 75, "whoever heard of it first"
    assert "was lost" in first.cause or "lost a node" in first.cause
    assert run.exit_record(2).code == 0
    assert node not in hosts(run, 2)
    assert cluster.client.queued() == {} or all(
        job.state.phase == "ended" for job in cluster.client.queued().values()
    ), "no allocation is left behind"


@pytest.mark.full
@pytest.mark.timeout(240)
def test_a_cancelled_study_is_resumed_from_what_it_committed(cluster: Cluster, small, driver, isoflop):
    process = driver(*LONG, *ONE)
    run = cluster.until(lambda: committed(small))
    done = isoflop("cancel", small.parent / "runs" / "small")
    assert done.stdout.startswith("the driver has stopped\n"), done.stderr
    process.communicate(timeout=60)
    assert process.returncode == 130
    step = run.committed_step()
    assert run.exit_record(1).code == 75
    assert all(job.state.phase == "ended" for job in cluster.client.queued().values())
    resumed = isoflop("resume", small.parent / "runs" / "small", timeout_s=150)
    assert run.state() == "done", resumed.stderr
    assert run.attempts() == [1, 2]
    assert run.exit_record(2).step == 1500 > step > 0


@pytest.mark.timeout(240)
def test_a_study_in_one_job_goes_on_when_its_job_is_warned(cluster: Cluster, small, isoflop, monkeypatch):
    monkeypatch.chdir(small.parent)
    done = isoflop(
        "run", small, "--site", "loopback", "--in-job", *LONG, "--set", "pilots={nodes: 2, walltime: '10'}"
    )
    assert done.status == 0, done.stderr
    sent = subprocess.run(
        ["sbatch", "--parsable"], input=done.stdout, capture_output=True, text=True, check=True
    )
    job_id = sent.stdout.strip()
    cluster.until(lambda: committed(small))
    cluster.call("scancel", "--batch", "--signal=USR1", job_id)
    cluster.ended(job_id)
    assert cluster.shown(job_id, "Restarts") == "1"
    log = (small.parent / f"small.study-{job_id}.out").read_text()
    assert [run.state() for run in runs_of(small)] == ["done"] * 2, log
    assert 75 in [run.exit_record(1).code for run in runs_of(small)]


@pytest.mark.full
@pytest.mark.timeout(240)
def test_the_waiting_allocation_of_a_killed_driver_is_taken_over(cluster: Cluster, small, driver):
    cluster.call("scontrol", "update", "PartitionName=batch", "State=DOWN")
    try:
        first = driver()
        jobs = small.parent / "runs" / "small" / "pilots.json"
        [pilot] = cluster.until(
            lambda: jobs.exists() and [p for p in json.loads(jobs.read_text()) if p["job_id"]]
        )
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        second = driver()
        heard = next(line for line in second.stderr if "of an earlier driver" in line)
    finally:
        cluster.call("scontrol", "update", "PartitionName=batch", "State=UP")
    stdout, stderr = second.communicate(timeout=150)
    assert [held["state"] for held in json.loads(stdout)["runs"]] == ["done"] * 2, stderr
    assert [held["job_id"] for held in json.loads(jobs.read_text())] == [pilot["job_id"]], heard + stderr


def causes_told(run: RunDir, study: Path, isoflop) -> str:
    """Return what `isoflop status` says of why things ended, in the middle of the next attempt."""
    [status] = json.loads(isoflop("status", study.parent / "runs" / "small", "--json").stdout)
    assert run.state() != "done", "too late to ask: this tests nothing"
    return status["cause"]


@pytest.mark.full
@pytest.mark.timeout(240)
def test_a_rank_that_runs_out_of_memory_is_said_and_its_run_goes_on_once(
    cluster: Cluster, small, driver, isoflop, monkeypatch
):
    (small.parent / "hungry").mkdir()
    (small.parent / "hungry" / "sitecustomize.py").write_text(HUNGRY)
    monkeypatch.setenv("PYTHONPATH", f"{small.parent / 'hungry'}:{ROOT}")
    process = driver(*LONG, *ONE, "--set", "resources={ranks: 2, retries: 1}")
    run = cluster.until(lambda: next((run for run in runs_of(small) if run.exit_record(1)), None))
    assert "a rank ran out of memory" in causes_told(run, small, isoflop)
    stdout, stderr = process.communicate(timeout=150)
    assert "a rank ran out of memory; starting it again" in stderr
    assert [held["state"] for held in json.loads(stdout)["runs"]] == ["done"], stderr
    assert (run.exit_record(1).code, run.attempts()) == (1, [1, 2])
    assert read_run(run.path).meta["restore_step"] > 0


@pytest.mark.full
@pytest.mark.timeout(240)
def test_a_run_whose_allocation_comes_to_its_walltime_goes_on_in_the_next(
    cluster: Cluster, small, driver, isoflop
):
    process = driver(
        *LONG, *ONE, "--set", "pilots={walltime: '1'}", "--set", "resources={ranks: 2, retries: 0}"
    )
    run = cluster.until(lambda: committed(small))
    jobs = small.parent / "runs" / "small" / "pilots.json"

    def ended() -> bool:
        """Return whether the first allocation is over; as long as it is not, nothing gets on in it."""
        with suppress(ProcessLookupError, KeyError):  # it has ended, or is not there yet
            for pid in json.loads(run.provenance.read_text())[str(max(run.attempts()))]["pids"]:
                os.kill(pid, signal.SIGSTOP)  # Slurm wakes them when it warns or ends them
        return json.loads(jobs.read_text())[0]["phase"] == "ended"

    cluster.until(ended)
    assert json.loads(jobs.read_text())[0]["sentence"] == "was ended at its walltime"
    told = causes_told(run, small, isoflop)
    assert "the walltime was over" in told or "was ended at its walltime" in told or "committed" in told
    stdout, stderr = process.communicate(timeout=150)
    assert [held["state"] for held in json.loads(stdout)["runs"]] == ["done"], stderr
    assert {run.exit_record(number).code for number in run.attempts()[:-1]} == {75}, "no attempt is a failure"
    assert read_run(run.path).meta["restore_step"] > 0
