"""Answers that a real Slurm does not give on demand: none, garbage, too late, about another job."""

from __future__ import annotations

import pytest

from slurm.client import Client
from slurm.errors import RefusedError, UnreachableError

TOKEN = "isoflop-0123456789abcdef"
SCRIPT = "#!/bin/bash\n#SBATCH --job-name=mine\n"


@pytest.fixture
def client(fake_slurm) -> Client:
    return Client(timeout_s=20)


def test_a_job_is_handed_in_once_and_has_its_token(client, fake_slurm, tmp_path):
    assert client.submit(SCRIPT, TOKEN, tmp_path) == "7"
    assert fake_slurm.calls("sbatch") == [["--parsable", f"--comment={TOKEN}", f"--chdir={tmp_path}"]]
    assert client.find(TOKEN) == "7"
    assert client.find(TOKEN[:-1] + "0") is None
    client.cancel("7")
    assert client.queued() == {}


@pytest.mark.parametrize("lost", ["lost", "empty"])
def test_a_job_whose_answer_is_lost_is_found_by_its_token(client, fake_slurm, tmp_path, lost):
    fake_slurm.say(sbatch=[lost])
    if lost == "empty":  # no job was made
        with pytest.raises(UnreachableError, match="the same command finds out"):
            client.submit(SCRIPT, TOKEN, tmp_path)
        return
    assert Client(timeout_s=4).submit(SCRIPT, TOKEN, tmp_path) == "7"
    assert len(fake_slurm.jobs()) == 1


def test_an_answer_lost_twice_is_said(client, fake_slurm, tmp_path):
    fake_slurm.say(sbatch=["lost"], squeue=["unreachable", "right"])
    with pytest.raises(
        UnreachableError, match="did not answer within 4 s; the same command finds out"
    ) as raised:
        Client(timeout_s=4).submit(SCRIPT, TOKEN, tmp_path)
    assert raised.value.exit_code == 4
    assert client.find(TOKEN) == "7"


@pytest.mark.parametrize("said", ["hang", "unreachable"])
def test_a_scheduler_that_does_not_answer_is_unreachable(fake_slurm, said):
    client = Client(timeout_s=1)
    fake_slurm.say(squeue=[said], sacct=[said], scontrol=[said], scancel=[said])
    for question in (
        client.queued,
        lambda: client.accounted(["7"]),
        lambda: client.shown("7"),
        lambda: client.cancel("7"),
    ):
        with pytest.raises(UnreachableError):
            question()


def test_a_scheduler_that_is_not_installed_is_unreachable(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match="squeue is not on PATH"):
        Client().queued()


def test_a_refusal_is_the_schedulers_own_sentence(client, fake_slurm, tmp_path):
    fake_slurm.say(sbatch=["refuse"])
    with pytest.raises(
        RefusedError, match=r"^sbatch: Batch job submission failed: Invalid account$"
    ) as raised:
        client.submit(SCRIPT, TOKEN, tmp_path)
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("said", ["garbage", "empty"])
def test_what_is_no_answer_holds_no_jobs(client, fake_slurm, said):
    fake_slurm.say(squeue=[said], sacct=[said], scontrol=[said], sbatch=[said])
    assert client.queued() == {}
    assert client.accounted(["7"]) == {}
    assert client.shown("7") is None


def test_without_accounting_the_log_of_completions_is_read(client, fake_slurm):
    fake_slurm.has(
        {
            "id": "7",
            "name": "mine",
            "state": "CANCELLED by 0",
            "end": "2026-01-01T10:00:00",
            "in": "completions",
        }
    )
    fake_slurm.say(sacct=["disabled", "right"])
    assert client.accounted(["7"])["7"].state.sentence.startswith("was cancelled by the machine (root)")
    assert ["-c" in call for call in fake_slurm.calls("sacct")] == [False, True]
