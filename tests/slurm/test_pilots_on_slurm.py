"""Studies on a real Slurm of four nodes: allocations that runs share, and what may become of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from launch.rundir import RunDir
from tests.slurm.conftest import CLUSTER, Cluster
from tests.workflows.conftest import ISOFLOP

LONG = ("--set", "base.train.steps=1500", "--set", "base.train.checkpoint_every=20")
ACROSS = ("--set", "base.train.steps=60", "--set", "sweep.grid={model.width: [16]}")
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
    assert isoflop("run", small, "--site", "loopback").status == 3, "a second driver refuses"
    node = hosts(run, 1)[1]
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
    one = ("--set", "sweep.grid={model.width: [16]}")
    process = driver(*LONG, *one)
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
