"""What Slurm says about a job, as one of five phases and a sentence. How a run ended is in the run's own files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["queued", "stuck", "running", "ended", "unknown"]


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job stands. `stuck` waits for a person; `unknown` is neither at work nor done."""

    phase: Phase
    sentence: str


_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_FED")
_RUNNING = {
    "RUNNING": "is running",
    "CONFIGURING": "has its nodes, which are being prepared",
    "COMPLETING": "is ending",
    "RESIZING": "is running",
    "SIGNALING": "is running",
    "STAGE_OUT": "has ended and copies its results",
    "SUSPENDED": "is suspended",
    "STOPPED": "is stopped by a signal and keeps its nodes",
}
_HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_ENDED = {
    "COMPLETED": "ended with code 0",
    "FAILED": "ended with another code than 0",
    "TIMEOUT": "was ended at its walltime",
    "DEADLINE": "was ended at its deadline",
    "NODE_FAIL": "lost a node",
    "BOOT_FAIL": "got a node that did not start",
    "OUT_OF_MEMORY": "ran out of memory",
    "PREEMPTED": "made room for another job",
    "REVOKED": "runs on another cluster of the federation",
}
_WAITS = {
    "Priority": "waits for jobs of higher priority",
    "Resources": "waits for nodes",
    "None": "has just been submitted",
    "BeginTime": "waits for its start time (after a requeue, for a moment)",
    "Dependency": "waits for another job",
    "Licenses": "waits for a licence",
    "Cleaning": "is being cleaned up after its last start",
    "NodeDown": "waits for a node that is down",
    "Prolog": "waits for its nodes to be prepared",
    "Reservation": "waits for its reservation",
    "QOSMaxJobsPerUserLimit": "waits: you have as many jobs running as this queue allows",
    "QOSMaxSubmitJobPerUserLimit": "waits: you have as many jobs queued as this queue allows",
    "AssocMaxJobsLimit": "waits: your project has as many jobs running as it may",
    "MaxRequeue": "was requeued more often than the machine allows",
}
_STUCK = {
    "JobHeldUser": "is held by you; `scontrol release` lets it go",
    "JobHeldAdmin": "is held by the machine's staff",
    "DependencyNeverSatisfied": "waits for a job that did not end as it had to, and will never start",
    "launch_failed_requeued_held": "could not be started and is held; `scontrol release` tries again",
    "JobHoldMaxRequeue": "was requeued more often than the machine allows and is held",
    "BadConstraints": "asks for nodes that do not exist",
    "PartitionNodeLimit": "asks for more nodes than its queue has",
    "PartitionTimeLimit": "asks for more time than its queue grants",
    "PartitionDown": "waits for a queue that is down",
    "PartitionInactive": "waits for a queue that takes no jobs",
    "ReqNodeNotAvail": "asks for nodes that are down or reserved, perhaps for maintenance",
    "InvalidAccount": "names a project that may not be charged",
    "AccountNotAllowed": "names a project that may not use this queue",
    "InvalidQOS": "names a quality of service that does not exist",
    "AssocGrpCPUMinutesLimit": "asks for more than its project has left",
    "AssocGrpBillingMinutes": "asks for more than its project has left",
}


def describe(state: str, reason: str = "") -> JobState:
    """Return the phase and a sentence for Slurm's state and reason, as squeue, sacct or scontrol print them."""
    word, _, rest = state.strip().rstrip("+").partition(" ")
    word = word.upper()
    why = reason.strip("() ").replace(" ", "_")
    if word in _QUEUED:
        return _waiting(why)
    if word in _HELD:
        return JobState("stuck", "is held after a requeue; `scontrol release` lets it go")
    if word in _RUNNING:
        return JobState("running", _RUNNING[word])
    if word == "CANCELLED":
        return JobState("ended", _cancelled(rest))
    if word in _ENDED:
        return JobState("ended", _ENDED[word])
    return JobState("unknown", f"is in a state that isoflop does not know: {state.strip()[:40]!r}")


def unknown_since(clock: str) -> JobState:
    """Return the state of a job of which nothing has been heard since then."""
    return JobState("unknown", f"unknown since {clock}: the scheduler does not say")


def _waiting(reason: str) -> JobState:
    name = reason.partition(",")[0]  # ReqNodeNotAvail,_UnavailableNodes:n1
    if name in _STUCK:
        return JobState("stuck", _STUCK[name])
    if name.startswith(("QOSGrp", "AssocGrp", "QOSMax", "AssocMax")):
        return JobState("queued", _WAITS.get(name, f"waits for a limit of its project or queue ({name})"))
    return JobState("queued", _WAITS.get(name or "None", f"waits ({name})"))


def _cancelled(rest: str) -> str:
    """Return who cancelled: sacct writes `CANCELLED by UID`; root is the scheduler itself or the machine's staff."""
    user = rest.removeprefix("by ").strip()
    if user == "0":
        return "was cancelled by the machine (root), for instance at its walltime or by its staff"
    return f"was cancelled by user {user}" if user.isdigit() else "was cancelled"
