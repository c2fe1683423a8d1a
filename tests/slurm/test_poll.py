"""Polling under a clock that the test sets: one question a tick, and silence is never an end."""

from __future__ import annotations

import time

import pytest

from slurm.client import Client
from slurm.poll import Poll, Submitted

HANDED_IN_S = time.mktime(time.strptime("2026-01-01T09:00:00", "%Y-%m-%dT%H:%M:%S"))
JOBS = [Submitted(str(number), f"run{number}", HANDED_IN_S) for number in (7, 8, 9)]


def known(number: int, state: str, **more: str) -> dict[str, str]:
    return {"id": str(number), "name": f"run{number}", "state": state, "reason": "None", **more}


@pytest.fixture
def clock():
    return [HANDED_IN_S + 3600]


@pytest.fixture
def poll(fake_slurm, clock):
    return Poll(Client(timeout_s=4), (40, 180), lambda: clock[0])


def phases(poll: Poll, jobs=JOBS) -> list[str]:
    return [state.phase for state in poll.tick(jobs).values()]


def test_any_number_of_jobs_is_one_question(poll, fake_slurm):
    fake_slurm.has(known(7, "PENDING"), known(8, "RUNNING"), known(9, "COMPLETED"))
    assert phases(poll) == ["queued", "running", "ended"]
    assert len(fake_slurm.calls("squeue")) == 1
    assert fake_slurm.calls("sacct") == fake_slurm.calls("scontrol") == []


def test_what_squeue_has_forgotten_is_looked_up_where_it_is_kept(poll, fake_slurm):
    end = "2026-01-01T10:00:00"
    fake_slurm.has(
        known(7, "TIMEOUT", **{"in": "accounting", "end": end}),
        known(8, "FAILED", **{"in": "memory"}),
        known(9, "RUNNING"),
    )
    assert phases(poll) == ["ended", "ended", "running"]
    assert len(fake_slurm.calls("sacct")) == 1
    assert fake_slurm.calls("scontrol") == [["--oneliner", "show", "job", "8"]]


@pytest.mark.parametrize("said", ["empty", "garbage", "unreachable"])
def test_silence_is_unknown_since_it_began_and_never_an_end(poll, fake_slurm, clock, said):
    fake_slurm.has(known(7, "RUNNING"))
    assert phases(poll, JOBS[:1]) == ["running"]
    silence = {command: [said] for command in ("squeue", "sacct", "scontrol")}
    fake_slurm.say(**silence)
    clock[0] = HANDED_IN_S + 7200
    sentence = poll.tick(JOBS[:1])["7"].sentence
    assert sentence.startswith("unknown since 2026-01-01 11:00:00")
    clock[0] += 600
    assert poll.tick(JOBS[:1])["7"].sentence == sentence
    fake_slurm.say()
    assert phases(poll, JOBS[:1]) == ["running"]


@pytest.mark.parametrize(
    "older",
    [
        {
            "name": "run7",
            "in": "accounting",
            "end": "2025-06-01T10:00:00",
        },  # it ended before ours was handed in
        {"name": "other", "in": "accounting", "end": "2026-01-01T10:00:00"},
        {"name": "other", "in": "squeue"},
        {"name": "other", "in": "memory"},
    ],
)
def test_an_older_job_of_the_same_number_is_not_ours(poll, fake_slurm, older):
    fake_slurm.has({**known(7, "COMPLETED"), **older})
    assert phases(poll, JOBS[:1]) == ["unknown"]


def test_questions_become_seldom_until_something_changes(poll, fake_slurm):
    fake_slurm.has(known(7, "PENDING"))
    pauses = []
    for _ in range(6):
        poll.tick(JOBS[:1])
        pauses.append(poll.pause_s)
    assert pauses == [40, 60, 90, 135, 180, 180]
    fake_slurm.has(known(7, "RUNNING"))
    poll.tick(JOBS[:1])
    assert poll.pause_s == 40
