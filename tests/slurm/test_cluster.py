"""On a real Slurm of four nodes: jobs run, save and requeue themselves, and end with the code of their program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.store import read_run
from launch.rundir import RunDir
from slurm.client import Client
from slurm.errors import RefusedError, UnreachableError
from slurm.poll import Poll, Submitted
from slurm.preflight import preflight
from slurm.script import render
from slurm.site import Queue, load_site
from slurm.spec import JobSpec, Resources
from tests.conftest import ROOT
from tests.slurm.conftest import CLUSTER
from tests.slurm.golden import job

TWO_NODES = (Resources(ranks=2, threads=5),)  # a node has 8 cores
HOSTILE = "a b';$(touch pwned)`touch pwned`"
TOKENS = iter(f"isoflop-{number:016x}" for number in range(1000))


@pytest.fixture
def steps(tmp_path, cluster):
    """Return `submit(behaviour, **changes) -> (job id, RunDir)`: a job of tests/slurm/steps.py under a hostile path."""

    def submit(behaviour: str, warn_s: int = 30, **changes: object) -> tuple[str, RunDir]:
        site = load_site("loopback")
        site = replace(site, scheduler=replace(site.slurm(), warn_s=warn_s))
        run = RunDir(tmp_path / HOSTILE / "run")
        plain = {
            "name": "steps",
            "program": "tests.slurm.steps",
            "run_dir": run.path,
            "config": f"behaviour: {behaviour}\n",
            "components": TWO_NODES,
            "python": Path(sys.executable),
            "environment": {"PYTHONPATH": str(ROOT)},
        }
        script = render(job(**{**plain, **changes}), site)
        return cluster.client.submit(script, next(TOKENS), tmp_path), run

    return submit


def codes(run: RunDir) -> list[int | None]:
    """Return the recorded code of every attempt, None for one that left no record."""
    return [record.code if (record := run.exit_record(number)) else None for number in run.attempts()]


def test_a_rendered_script_piped_to_sbatch_brings_a_run_to_its_end(cluster, small, isoflop, monkeypatch):
    monkeypatch.chdir(small.parent)
    monkeypatch.setenv("HF_TOKEN", "hush")
    study = (
        small,
        "--set",
        "sweep.grid={}",
        "--set",
        "resources={ranks: 2, threads: 5}",
        "--set",
        "site=loopback",
    )
    script = isoflop("render", *study).stdout
    sent = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=True)
    job_id = sent.stdout.strip()
    assert cluster.ended(job_id).state.sentence == "ended with code 0"
    [status] = json.loads(isoflop("status", *study, "--json").stdout)
    assert (status["state"], status["step"], status["attempts"]) == ("done", 10, 1)
    run = RunDir(next((small.parent / "runs" / "small").glob("base-*")))
    [attempt] = json.loads(run.provenance.read_text()).values()
    assert sorted(attempt["hosts"]) == ["n1", "n2"]
    assert attempt["environment"]["SLURM_JOB_ID"] == job_id
    kept = b"".join(path.read_bytes() for path in small.parent.rglob("*") if path.is_file())
    assert b"hush" not in kept, "no file of a run or log of a job holds a secret of the shell"


def test_a_warned_job_saves_requeues_itself_and_goes_on(steps, cluster, tmp_path):
    job_id, run = steps("until_warned")
    cluster.until((run.path / "ready").exists)
    assert run.state() == "running"
    cluster.call("scancel", "--batch", "--signal=USR1", job_id)  # as `--signal=B:USR1@30` does
    assert cluster.ended(job_id).state.sentence == "ended with code 0"
    assert codes(run) == [75, 0]
    assert cluster.shown(job_id, "Restarts") == "1"
    held = json.loads(run.provenance.read_text())
    assert held["2"]["environment"]["SLURM_RESTART_COUNT"] == "1"
    log = (tmp_path / f"steps-{job_id}.out").read_text()
    assert "restart 0" in log
    assert "restart 1" in log, "the log of the first start is kept"
    assert not list(tmp_path.rglob("pwned"))


def test_ranks_that_are_deaf_to_the_warning_are_ended_in_time_and_go_on(steps, cluster):
    job_id, run = steps("deaf", warn_s=3)
    cluster.until((run.path / "ready").exists)
    cluster.call("scancel", "--batch", "--signal=USR1", job_id)
    assert cluster.ended(job_id).state.sentence == "ended with code 0"
    assert codes(run) == [None, 0]


def test_a_job_that_gets_nowhere_stops_requeueing_itself(steps, cluster, tmp_path):
    job_id, run = steps("never_on", restarts_max=1)
    cluster.ended(job_id)
    assert codes(run) == [75, 75]
    assert cluster.shown(job_id, "ExitCode") == "75:0"
    assert "giving up: 1 restarts without" in (tmp_path / f"steps-{job_id}.out").read_text()


def test_the_code_of_the_job_is_that_of_the_program(steps, cluster):
    job_id, run = steps("refuse")
    cluster.ended(job_id)
    assert codes(run) == [3]
    assert cluster.shown(job_id, "ExitCode") == "3:0"


def test_a_lost_rank_ends_the_job(steps, cluster):
    job_id, run = steps("until_warned")
    cluster.until((run.path / "ready").exists)
    os.kill(json.loads(run.provenance.read_text())["1"]["pids"][1], signal.SIGKILL)
    cluster.ended(job_id)
    assert cluster.shown(job_id, "ExitCode") == "137:0"
    assert run.state() == "interrupted"


def test_parts_of_different_ranks_are_one_world(steps, cluster):
    job_id, run = steps("finish", components=(Resources(2, 1), Resources(1, 2)))
    assert cluster.ended(job_id).state.sentence == "ended with code 0"
    assert len(json.loads(run.provenance.read_text())["1"]["pids"]) == 3


def test_a_packed_environment_is_unpacked_where_the_ranks_are(steps, cluster, tmp_path):
    packed = tmp_path / "pack" / "bin" / "python"
    packed.parent.mkdir(parents=True)
    packed.write_text(f'#!/bin/sh\necho unpacked >&2\nexec {sys.executable} "$@"\n')
    packed.chmod(0o755)
    with tarfile.open(tmp_path / "a b.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "pack", ".")
    job_id, run = steps(
        "finish", archive=tmp_path / "a b.tar.gz", components=(Resources(2),), python=Path("nowhere")
    )
    assert cluster.ended(job_id).state.sentence == "ended with code 0"
    assert run.attempt(1, "err").read_text() == "unpacked\n" * 2


def test_a_submitted_run_is_not_submitted_twice(cluster, small, isoflop, monkeypatch):
    monkeypatch.chdir(small.parent)
    study = (small, "--set", "sweep.grid={}", "--site", "loopback")
    cluster.call("scontrol", "update", "PartitionName=batch", "State=DOWN")
    try:
        first = isoflop("submit", *study, "--json")
        assert first.status == 0, first.stderr
        job_id = json.loads(first.stdout)["job"]
        second = isoflop("submit", *study)
        assert (second.status, second.stdout) == (3, "")
        assert f"has job {job_id} already" in second.stderr
        assert cluster.client.queued()[job_id].state.phase in ("queued", "stuck")
        cluster.client.cancel(job_id)
        assert cluster.ended(job_id).state.sentence == "was cancelled"
    finally:
        cluster.call("scontrol", "update", "PartitionName=batch", "State=UP")
    done = isoflop("submit", *study, "--wait")
    assert (done.status, done.stdout.strip().isdigit()) == (0, True), done.stderr
    again = isoflop("submit", *study)
    assert again.status == 3
    assert "is done; there is nothing to submit" in again.stderr


BINDS = """
from mpi4py import MPI
from launch.binding import BindingError, bind
from slurm.site import NodeGpus
try:
    made = bind(MPI.COMM_WORLD, NodeGpus(8))
    word = f"gpu {made.gpu} as device {made.device}"
except BindingError as error:
    word = str(error)
print("\\n".join(MPI.COMM_WORLD.gather(word) or []), end="")
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus-per-task=1"], ["gpu 0 as device 0", "gpu 1 as device 0"]),
        (["--gpus-per-node=2", "--gpu-bind=none"], ["gpu 0 as device 0", "gpu 1 as device 1"]),
        (
            ["--gpus-per-node=2", "--gpu-bind=map_gpu:1,1"],
            ["rank 0 with cores "] * 2,
        ),
        ([], ["rank 0: expected one of 8 GPUs, got none in ROCR_VISIBLE_DEVICES"] * 2),
    ],
    ids=["one_each", "all_visible", "one_for_two", "none"],
)
def test_ranks_know_the_gpus_that_a_real_slurm_gave_them(cluster, monkeypatch, options, said):
    """The GPUs are null devices: which of them a rank gets is Slurm's word all the same."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    srun = ["srun", "--mpi=pmi2", "-N1", "-n2", *options, sys.executable, "-m", "mpi4py", "-c", BINDS]
    words = cluster.call(*srun).splitlines()
    assert [word[: len(start)] for word, start in zip(words, said, strict=True)] == said


def test_every_source_tells_of_a_job(steps, cluster):
    job_id, _ = steps("refuse")
    cluster.ended(job_id)
    mine = Submitted(job_id, "steps", 0)
    assert Poll(cluster.client, (1, 2)).tick([mine])[job_id].phase == "ended"
    assert (
        cluster.until(lambda: cluster.client.accounted([job_id]))[job_id].state.phase == "ended"
    )  # from its log
    assert cluster.client.shown(job_id).state.phase == "ended"
    unheard = Submitted("999999", "steps", 0)
    assert Poll(cluster.client, (1, 2)).tick([mine, unheard])["999999"].phase == "unknown"


def test_the_scheduler_is_asked_before_a_job_is_sent(cluster, tmp_path):
    site = load_site("loopback")
    sound: JobSpec = job(directory=tmp_path, run_dir=tmp_path / "run", python=Path(sys.executable))
    assert preflight(sound, site, {}, cluster.client) == []
    wrong = Queue("gold", ("--partition=gold",), site.slurm().queues[0].bins)
    elsewhere = replace(site, scheduler=replace(site.slurm(), queues=(wrong,)))
    [problem] = preflight(sound, elsewhere, {}, cluster.client)
    assert "invalid partition" in problem.lower()


def test_doctor_starts_ranks_under_srun_and_finds_one_world(cluster, isoflop, tmp_path):
    done = isoflop("doctor", "--site", "loopback", "--runs-dir", tmp_path / "runs", "--json")
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["scheduler"]["verdict"] == found["world size"]["verdict"] == "ok"
    assert "srun starts one world of 2 ranks" in found["world size"]["sentence"]


def test_a_scheduler_that_is_gone_is_unreachable(cluster, monkeypatch, tmp_path, isoflop, small):
    conf = (cluster.directory / "slurm.conf").read_text()
    port = next(line for line in conf.splitlines() if line.startswith("SlurmctldPort="))
    (tmp_path / "slurm.conf").write_text(conf.replace(port, "SlurmctldPort=1") + "MessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(UnreachableError):
        Client().queued()
    with pytest.raises(RefusedError):
        cluster.client.cancel("not-a-job")
    done = isoflop("submit", small, "--set", "sweep.grid={}", "--site", "loopback")
    assert (done.status, done.stdout) == (4, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.full
def test_a_language_model_that_is_warned_loses_no_more_than_since_its_checkpoint(
    cluster, small, isoflop, monkeypatch
):
    monkeypatch.chdir(small.parent)
    study = (small, "--set", "sweep.grid={}", "--set", "base.train.steps=600", "--set", "resources.ranks=2")
    site = (ROOT / "slurm" / "sites" / "loopback.yaml").read_text().replace("warn_s: 30", "warn_s: 3")
    (small.parent / "hasty.yaml").write_text(site)
    study += ("--set", "base.train.checkpoint_every=20", "--set", f"site={small.parent}/hasty.yaml")
    sent = isoflop("submit", *study)
    assert sent.status == 0, sent.stderr
    run = RunDir(next((small.parent / "runs" / "small").glob("base-*")))
    saved = cluster.until(lambda: sorted(run.checkpoints.glob("step-*")))[-1]
    cluster.call("scancel", "--batch", "--signal=USR1", sent.stdout.strip())
    assert cluster.ended(sent.stdout.strip()).state.sentence == "ended with code 0"
    assert codes(run)[0] in (75, None), "it asks to be requeued, or is ended by the warning"
    assert codes(run)[1:] == [0]
    [status] = json.loads(isoflop("status", *study, "--json").stdout)
    assert (status["state"], status["step"]) == ("done", 600)
    restored = [row["step"] for row in read_run(run.path).events if row["kind"] == b"restored"]
    assert len(restored) == 1
    assert restored[0] >= int(saved.name.removeprefix("step-"))


@pytest.mark.full
def test_a_job_that_loses_a_node_goes_on_elsewhere(steps, cluster):
    job_id, run = steps("until_warned")
    cluster.until((run.path / "ready").exists)
    node = next(
        host for host, ranks in json.loads(run.provenance.read_text())["1"]["hosts"].items() if 1 in ranks
    )
    cluster.call(CLUSTER, "lose", cluster.directory, node)
    try:
        assert cluster.ended(job_id).state.sentence == "ended with code 0"
        assert codes(run) == [None, 0]
    finally:
        cluster.call(CLUSTER, "boot", cluster.directory, node)
