"""Every state that Slurm has is one of five phases; what nobody knows is not done."""

from __future__ import annotations

import pytest

from slurm.states import describe, unknown_since


@pytest.mark.parametrize(
    ("state", "reason", "phase", "words"),
    [
        ("PENDING", "(Priority)", "queued", "higher priority"),
        ("PENDING", "None", "queued", "just been submitted"),
        ("PENDING", "QOSMaxJobsPerUserLimit", "queued", "as many jobs running"),
        ("PENDING", "QOSGrpNodeLimit", "queued", "limit of its project or queue (QOSGrpNodeLimit)"),
        ("PENDING", "SomethingNew", "queued", "waits (SomethingNew)"),
        ("PENDING", "launch failed requeued held", "stuck", "scontrol release"),
        ("PENDING", "DependencyNeverSatisfied", "stuck", "never start"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "stuck", "down or reserved"),
        ("PENDING", "AssocGrpCPUMinutesLimit", "stuck", "project has left"),
        ("REQUEUE_HOLD", "", "stuck", "held after a requeue"),
        ("RUNNING", "None", "running", "is running"),
        ("COMPLETING", "", "running", "is ending"),
        ("SUSPENDED", "", "running", "suspended"),
        ("COMPLETED", "", "ended", "code 0"),
        ("CANCELLED by 0", "", "ended", "by the machine (root)"),
        ("CANCELLED by 1234", "", "ended", "by user 1234"),
        ("CANCELLED+", "", "ended", "was cancelled"),
        ("TIMEOUT", "TimeLimit", "ended", "walltime"),
        ("NODE_FAIL", "", "ended", "lost a node"),
        ("OUT_OF_ME+", "", "unknown", "does not know: 'OUT_OF_ME+'"),
        ("", "", "unknown", "does not know"),
        ("COMPLETED; rm", "", "unknown", "does not know"),
    ],
)
def test_a_state_is_a_phase_and_a_sentence(state, reason, phase, words):
    described = describe(state, reason)
    assert described.phase == phase
    assert words in described.sentence


SLURM_STATES = """
BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING
PREEMPTED RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING SPECIAL_EXIT STAGE_OUT
STOPPED SUSPENDED TIMEOUT
"""


@pytest.mark.parametrize("state", SLURM_STATES.split())
def test_every_state_of_the_manual_is_known(state):
    assert describe(state).phase != "unknown"


def test_unknown_says_since_when():
    assert unknown_since("2026-01-01 10:00:00").sentence.startswith("unknown since 2026-01-01 10:00:00")
