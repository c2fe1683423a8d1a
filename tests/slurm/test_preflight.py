"""What would make a job fail is said before it is handed in, all of it at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slurm.client import Client
from slurm.errors import UnreachableError
from slurm.preflight import preflight
from slurm.site import load_site
from slurm.spec import Resources
from tests.slurm.golden import job


def plain(tmp_path: Path, **changes: object):
    return job(
        **{
            "run_dir": tmp_path / "runs" / "s" / "r",
            "python": Path(sys.executable),
            "directory": tmp_path,
            **changes,
        }
    )


def test_a_sound_job_passes(tmp_path, fake_slurm):
    assert preflight(plain(tmp_path), load_site("loopback"), {}, Client()) == []
    assert [call[0] for call in fake_slurm.calls("sbatch")] == ["--test-only"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("site", "changes", "words"),
    [
        ("loopback", {"components": (Resources(33),)}, "5 nodes: queue 'batch' of loopback takes at most 4"),
        (
            "loopback",
            {"walltime_s": 7260},
            "walltime 02:01:00: queue 'batch' grants 1 nodes at most 02:00:00",
        ),
        (
            "frontier",
            {"walltime_s": 60, "account": "abc123"},
            "the warning to save comes 300 s before its end",
        ),
        ("frontier", {}, "account: frontier charges a project; give --account, or set SBATCH_ACCOUNT"),
        ("loopback", {"python": Path("/nowhere/python")}, "python /nowhere/python: no such program"),
        ("loopback", {"archive": Path("env.tar")}, "env.tar: no such file"),
        ("loopback", {"directory": Path("/nowhere")}, "/nowhere: no such directory"),
        ("loopback", {"run_dir": Path("/dev/null/run")}, "/dev/null is not a directory that can be written"),
        (
            "perlmutter",
            {"archive": Path(sys.executable), "account": "m1_g"},
            "perlmutter has no node-local disk",
        ),
    ],
)
def test_each_obstacle_is_a_sentence(site, changes, words, tmp_path, fake_slurm):
    [problem] = preflight(plain(tmp_path, **changes), load_site(site), {}, Client())
    assert words in problem
    assert fake_slurm.calls("sbatch") == [], "the scheduler is not bothered with a job that is known to fail"


def test_all_obstacles_are_said_at_once(tmp_path):
    bad = plain(tmp_path, walltime_s=3600 * 13, python=Path("/nowhere"))
    assert len(preflight(bad, load_site("frontier"), {}, None)) == 3


def test_an_account_may_come_from_the_environment(tmp_path):
    assert preflight(plain(tmp_path), load_site("frontier"), {"SBATCH_ACCOUNT": "abc123"}, None) == []


def test_a_full_queue_is_seen(tmp_path, fake_slurm):
    full = [{"id": str(n), "name": "x", "state": "PENDING", "reason": "Priority"} for n in range(1, 51)]
    fake_slurm.has(*full)
    assert (
        "50 of your jobs wait or run already"
        in preflight(plain(tmp_path), load_site("loopback"), {}, Client())[0]
    )
    fake_slurm.has(*full[1:], {**full[0], "state": "COMPLETED"})
    assert preflight(plain(tmp_path), load_site("loopback"), {}, Client()) == []


def test_the_schedulers_own_refusal_is_passed_on(tmp_path, fake_slurm):
    fake_slurm.say(sbatch=["refuse"])
    [problem] = preflight(plain(tmp_path), load_site("loopback"), {}, Client())
    assert (
        problem == "the scheduler would refuse the job: sbatch: Batch job submission failed: Invalid account"
    )


def test_a_scheduler_that_does_not_answer_is_no_finding(tmp_path, fake_slurm):
    fake_slurm.say(squeue=["unreachable"])
    with pytest.raises(UnreachableError):
        preflight(plain(tmp_path), load_site("loopback"), {}, Client())
