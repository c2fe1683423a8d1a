"""Allocations of a study under a Slurm that does as it is told: none twice, none too many, none forgotten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from launch.attempt import Step, explain, run_attempt
from launch.rundir import ExitRecord, RunDir, make_private, write_exit, write_private
from slurm.client import Client
from slurm.errors import RefusedError, UnreachableError
from slurm.states import describe
from tests.conftest import ROOT
from tests.slurm.conftest import FakeSlurm
from workflows.errors import ConfigError
from workflows.jobs import Watch
from workflows.pilots import Fleet, read_pilots
from workflows.study import Study, read_study

PORT = 4242
STEP_ENDED = "slurmstepd: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-01-01T00:00:00"


@pytest.fixture
def study(small, fake_slurm) -> Study:
    """Return a study of two runs for the loopback site; its directory exists."""
    return study_of(small)


def study_of(small: Path, *overrides: str) -> Study:
    settings = ["pilots={nodes: 2, walltime: '1:00:00'}", *overrides]
    found = read_study(small, settings, "loopback")
    make_private(found.directory / ".pilots")
    return found


def fleet_of(study: Study, said: list[str] | None = None, port: int = PORT) -> Fleet:
    say: Callable[[str], None] = (said if said is not None else []).append
    fleet = Fleet(study, Client(timeout_s=4), port, lambda token: ["work", token], say)
    fleet.take_over()
    return fleet


def tick(fleet: Fleet, wanted: int = 1) -> None:
    fleet._due_s = 0.0
    fleet.tick(wanted)


def asked(fake: FakeSlurm) -> int:
    return len([call for call in fake.calls("sbatch") if "--test-only" not in call])


def become(fake: FakeSlurm, state: str, reason: str = "None", **more: str) -> None:
    fake.has(*({**job, "state": state, "reason": reason, **more} for job in fake.jobs()))


def test_as_many_allocations_as_are_wanted_with_one_question_a_tick(study, fake_slurm):
    fleet = fleet_of(study)
    for _ in range(3):
        tick(fleet, wanted=2)
    assert asked(fake_slurm) == 2
    fleet.tick(2)
    assert len(fake_slurm.calls("squeue")) == 3, "the fourth came before its time"
    assert fake_slurm.calls("sacct") == fake_slurm.calls("scontrol") == []


def test_an_allocation_that_ends_is_followed_by_another(study, fake_slurm):
    said: list[str] = []
    fleet = fleet_of(study, said)
    tick(fleet)
    become(fake_slurm, "NODE_FAIL")
    tick(fleet)
    assert asked(fake_slurm) == 2
    assert "allocation 7 lost a node" in said
    assert [pilot.phase for pilot in read_pilots(study.directory)] == ["ended", "queued"]


@pytest.mark.parametrize("said", ["empty", "garbage", "unreachable", "hang"])
def test_a_silent_scheduler_is_asked_for_nothing_twice(study, fake_slurm, said):
    fleet = fleet_of(study)
    fleet._client = fleet._poll._client = Client(timeout_s=0.5)
    tick(fleet)
    become(fake_slurm, "RUNNING")
    tick(fleet)
    fake_slurm.say(squeue=[said], sacct=[said], scontrol=[said])
    for _ in range(2):
        tick(fleet)
    [pilot] = fleet.pilots
    assert asked(fake_slurm) == 1
    assert pilot.phase == "running", "the last that was known"
    assert pilot.sentence.startswith("unknown since ")
    fake_slurm.say()
    tick(fleet)
    assert (fleet.pilots[0].sentence, asked(fake_slurm)) == ("is running", 1)


@pytest.mark.parametrize("said", ["unreachable", "hang"])
def test_a_scheduler_that_has_not_answered_yet_is_asked_for_nothing(study, fake_slurm, said):
    fleet = fleet_of(study)
    fleet._client = fleet._poll._client = Client(timeout_s=0.5)
    fake_slurm.say(squeue=[said])
    tick(fleet)
    assert asked(fake_slurm) == 0
    fake_slurm.say()
    tick(fleet)
    assert asked(fake_slurm) == 1


def test_a_job_that_the_controller_has_forgotten_is_over(study, fake_slurm):
    fleet = fleet_of(study)
    tick(fleet)
    fake_slurm.has()
    fake_slurm.say(sacct=["disabled"])
    tick(fleet)
    assert fleet.pilots[0].sentence == "has ended, and the scheduler has forgotten how"
    assert asked(fake_slurm) == 2


@pytest.mark.parametrize(
    "kills", [pytest.param(2, id="2 kills"), pytest.param(50, marks=pytest.mark.full, id="50 kills")]
)
@pytest.mark.timeout(300)
def test_a_driver_that_dies_between_sbatch_and_its_record_leaves_no_second_job(
    small, study, fake_slurm, kills
):
    program = "import sys; from tests.slurm.test_pilots import die; die(sys.argv[1])"
    for number in range(kills):
        fake_slurm.say(sbatch=["orphan"])
        died = subprocess.run([sys.executable, "-c", program, str(small)], cwd=ROOT, timeout=60)
        assert died.returncode == -signal.SIGKILL
        assert read_pilots(study.directory)[-1].job_id is None, "it did not live to write that down"
        fake_slurm.say()
        fleet = fleet_of(study)
        tick(fleet)
        [job] = fake_slurm.jobs()
        assert [pilot.job_id for pilot in fleet.alive] == [job["id"]]
        assert asked(fake_slurm) == number + 1
        become(fake_slurm, "COMPLETED")
        fleet._fruitless = 0
        tick(fleet, wanted=0)
        fake_slurm.has()


def die(study: str) -> None:
    """Ask for one allocation, in a process that does not survive it."""
    fleet_of(study_of(Path(study))).tick(1)
    raise SystemExit("the driver outlived its sbatch")


def test_a_driver_that_died_before_sbatch_heard_anything_has_left_nothing(study, fake_slurm, monkeypatch):
    fleet = fleet_of(study)
    tick(fleet)
    monkeypatch.setattr("workflows.pilots.LANDING_S", 0.0)
    fleet._note(type(fleet.pilots[0])(**{**vars_of(fleet.pilots[0]), "job_id": None}))
    fake_slurm.has()
    again = fleet_of(study)
    assert again.alive == []
    assert again.pilots[0].sentence == "was never taken"


def vars_of(pilot) -> dict:
    return {name: getattr(pilot, name) for name in pilot.__slots__}


def test_without_an_answer_nothing_is_asked_for_after_a_driver_has_died(study, fake_slurm):
    tick(fleet_of(study))
    fake_slurm.say(squeue=["unreachable"])
    with pytest.raises(UnreachableError):
        fleet_of(study)


def test_an_allocation_that_reports_elsewhere_is_ended(study, fake_slurm):
    tick(fleet_of(study))
    fleet = fleet_of(study, port=PORT + 1)
    assert fleet.alive == []
    assert fake_slurm.jobs() == []


def test_the_budget_is_never_overdrawn(small, fake_slurm):
    study = study_of(small, "pilots.node_hours=3")  # an allocation may cost two
    fleet = fleet_of(study)
    tick(fleet, wanted=5)
    assert [pilot.walltime_s for pilot in fleet.pilots] == [3600, 1800], (
        "the second has what the first may leave"
    )
    assert fleet.problem.startswith("pilots.node_hours=3: the rest of the budget is too little")
    assert sum(pilot.node_hours() for pilot in fleet.pilots) <= 3
    become(fake_slurm, "COMPLETED")
    tick(fleet, wanted=5)
    assert asked(fake_slurm) == 2, "a study whose budget was spent stays stopped"
    assert sum(pilot.node_hours() for pilot in fleet.pilots) < 0.1, "what was not used was not spent"


def test_a_node_on_which_runs_die_twice_gets_no_third(study, fake_slurm):
    for run, node in zip(study.runs, ("n3", "n3"), strict=True):
        directory = study.run_dir(run)
        make_private(directory.path)
        write_exit(directory, 1, ExitRecord(1, "killed", 0, -1, 0, 0, node))
        write_exit(directory, 2, ExitRecord(1, "its own mistake", 0, -1, 0, 0))
    write_exit(study.run_dir(study.runs[0]), 3, ExitRecord(1, "killed", 0, -1, 0, 0, "n1"))
    fleet = fleet_of(study)
    assert fleet.allocation("t", 600).exclude == ("n3",)


def test_a_full_queue_is_not_asked(study, fake_slurm):
    others = [{"id": str(n), "name": "other", "state": "PENDING"} for n in range(100, 149)]
    fake_slurm.has(*others)  # the site takes 50
    fleet = fleet_of(study)
    tick(fleet, wanted=1)
    assert asked(fake_slurm) == 1
    tick(fleet, wanted=2)
    assert asked(fake_slurm) == 1


def test_allocations_that_do_nothing_are_given_up(study, fake_slurm):
    fleet = fleet_of(study)
    for _ in range(6):
        tick(fleet)
        become(fake_slurm, "FAILED")
    assert asked(fake_slurm) == 3
    assert "ended without starting a run" in fleet.problem


def test_a_refused_allocation_says_why(study, fake_slurm):
    fleet = fleet_of(study)
    fake_slurm.say(sbatch=["refuse"])
    tick(fleet)
    assert "Invalid account" in fleet.problem
    with pytest.raises(RefusedError, match="Invalid account"):
        fleet.check()


def test_a_run_too_wide_for_its_allocations_is_refused(small, fake_slurm):
    with pytest.raises(ConfigError, match="takes 4 nodes of loopback"):
        fleet_of(study_of(small, "resources={ranks: 4, threads: 5}"))


def test_status_says_why_it_waits_and_cancel_ends_it(small, study, fake_slurm, isoflop):
    tick(fleet_of(study))
    become(fake_slurm, "PENDING", "QOSMaxJobsPerUserLimit")
    done = isoflop("status", small, "--site", "loopback")
    assert done.status == 0, done.stderr
    assert "allocation 7 waits: you have as many jobs running as this queue allows" in done.stdout
    done = isoflop("cancel", small, "--set", "site=loopback")
    assert (done.status, done.stdout) == (0, "job 7 (allocation) was cancelled\n"), done.stderr
    assert fake_slurm.jobs() == []


def test_who_watches_a_study_is_done_when_its_jobs_are(study, fake_slurm):
    fleet = fleet_of(study)
    tick(fleet)
    watch = Watch(study)
    assert watch.tick([]) == ["allocation 7 has just been submitted"]
    assert watch.goes_on([])
    become(fake_slurm, "FAILED")
    tick(fleet, wanted=0)
    assert watch.tick([]) == []
    assert not watch.goes_on([])


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("OUT_OF_MEMORY", "ran out of memory"),
        pytest.param("TIMEOUT", "was ended at its walltime", marks=pytest.mark.full),
        pytest.param("NODE_FAIL", "lost a node", marks=pytest.mark.full),
        pytest.param("CANCELLED by 0", "was cancelled by the machine (root), ", marks=pytest.mark.full),
    ],
)
def test_status_says_what_ended_the_job_of_a_run_that_left_no_word(small, fake_slurm, isoflop, state, words):
    study = (small, "--set", "sweep.grid={}", "--set", "site=loopback")
    assert isoflop("submit", *study).stdout == "7\n"
    [run] = [RunDir(path.parent) for path in small.parent.glob("runs/small/*/jobs.json")]
    assert "job 7 of " in isoflop("status", *study).stdout
    run.attempt(1, "out").touch()
    become(fake_slurm, state)
    assert f"\njob 7 of {run.path.name} {words}" in isoflop("status", *study).stdout
    write_exit(run, 1, ExitRecord(0, "finished", 0, 10, 0, 0))
    assert "job 7" not in isoflop("status", *study).stdout


@pytest.mark.parametrize(
    ("tail", "cause", "rank", "node"),
    [
        ("srun: error: n2: task 1: Killed\n" + STEP_ENDED + " ***", "rank 1 on n2", 1, "n2"),
        ("srun: error: Node failure on n4\nsrun: error: n1: task 0: Killed", "node n4 was lost", -1, "n4"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0.", "a rank ran out of memory", -1, ""),
        ("srun: error: n1: task 1: Out Of Memory", "a rank ran out of memory", -1, ""),
        (
            "slurmstepd-n1: error: StepId=2.1 exceeded memory limit (2325381120 > 2097152000), being killed\n"
            + STEP_ENDED
            + " ***\nsrun: error: n1: task 0: Killed",
            "a rank ran out of memory",
            -1,
            "",
        ),
        (STEP_ENDED + " DUE TO TIME LIMIT ***", "the walltime was over", -1, ""),
        (STEP_ENDED + " DUE TO PREEMPTION ***", "its nodes went to another job", -1, ""),
        (STEP_ENDED + " ***", "its step was ended from outside", -1, ""),
        ("srun: error: Task launch for StepId=3.0 failed on node n3: no", "node n3 did not start", -1, "n3"),
    ],
)
def test_what_srun_says_becomes_a_cause_and_a_place(tail, cause, rank, node):
    found = explain(137, tail, -1)
    assert found[0].startswith(cause)
    assert found[1:] == (rank, node)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("srun: error: Node failure on n4", 75),
        ("srun: error: Task launch for StepId=3.0 failed on node n3: no", 75),
        (STEP_ENDED + " DUE TO TIME LIMIT ***", 75),
        (STEP_ENDED + " DUE TO NODE FAILURE ***", 75),
        (STEP_ENDED + " DUE TO PREEMPTION ***", 75),
        (STEP_ENDED + " ***", 1),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0.", 1),
    ],
)
def test_an_attempt_whose_nodes_were_taken_goes_on_elsewhere(tmp_path, fake_slurm, said, code):
    run = RunDir(make_private(tmp_path / "run"))
    make_private(run.checkpoints / "step-00000005")
    fake_slurm.say(srun=[f"says {said}\n"])
    record = run_attempt(run, Step("no.program", 2, ()), threading.Event())
    assert (record.code, record.step) == (code, 5 if code == 75 else -1)


def test_memory_and_nodes_are_named_by_the_scheduler_too():
    assert describe("OUT_OF_MEMORY").sentence == "ran out of memory"
    assert describe("NODE_FAIL").sentence == "lost a node"


def test_a_driver_that_could_not_be_detached_does_not_start(
    small, fake_slurm, isoflop, monkeypatch, tmp_path
):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "setsid").write_text("#!/bin/sh\necho what is setpriv? >&2; exit 1\n")
    (tmp_path / "bin" / "setsid").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    done = isoflop("run", small, "--site", "loopback", timeout_s=30)
    assert (done.status, done.stdout) == (3, "")
    assert done.stderr.endswith("what is setpriv?; a newer util-linux is needed\n")
    assert asked(fake_slurm) == 0


HASTY = "import workflows.parsl_pilots as p; p.HEARTBEAT_S, p.SILENCE_S = 1, 4; from workflows.cli import main; main()"
"""The command, whose allocations count its silence as its end after 4 s instead of 60."""


@pytest.fixture
def processes(fake_slurm) -> Iterator[Callable[[str], list[int]]]:
    """Return `find(word)`: processes of this test with a word in command or environment; all of them end with it."""

    def find(word: str = "") -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                held = (entry / "environ").read_bytes().split(b"\0")
                mine = f"FAKE_SLURM={fake_slurm.file}".encode() in held
                if mine and (word.encode() in held or word.encode() in (entry / "cmdline").read_bytes()):
                    found.append(int(entry.name))
        return found

    yield find
    for pid in find():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.1)


@pytest.mark.full
def test_an_allocation_ends_itself_when_its_driver_falls_silent(small, study, fake_slurm, processes):
    fake_slurm.say(sbatch=["starts"], srun=["0", "hang"])  # the first one clears the node
    driver = subprocess.Popen(
        [sys.executable, "-c", HASTY, "run", str(small), "--site", "loopback"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: len(fake_slurm.calls("srun")) > 1, "an attempt in the allocation")
    assert processes("process_worker_pool")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not processes("process_worker_pool"), "the end of the allocation")


@pytest.mark.full
def test_a_lost_allocation_is_heard_of_from_the_scheduler(small, study, fake_slurm, processes):
    """Parsl alone would notice after its heartbeats' silence, long here, and till then use the node that stood idle."""
    fake_slurm.say(sbatch=["starts"], srun=["0", "hang"])
    patient = HASTY.replace("= 1, 4", "= 10, 1000")
    wide = ("--set", "sweep.grid={}", "--set", "pilots={nodes: 2}")
    driver = subprocess.Popen(
        [sys.executable, "-c", patient, "run", str(small), "--site", "loopback", *wide],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: len(fake_slurm.calls("srun")) > 1, "an attempt in the allocation")
    [run] = [RunDir(path.parent) for path in small.parent.glob("runs/small/*/attempt-001.out")]
    write_private(run.provenance, json.dumps({"1": {"environment": {"SLURM_JOB_ID": "7"}}}))
    fake_slurm.say(sbatch=["starts"], srun=["finish"])
    for number in (signal.SIGSTOP, signal.SIGKILL):  # all at once, as the loss of a node
        for pid in processes("SLURM_JOB_ID=7"):
            os.kill(pid, number)
    driver.wait(timeout=60)
    assert run.exit_record(1).cause.startswith("allocation 7 ")
    assert (run.exit_record(1).code, run.exit_record(2).code) == (75, 0)


@pytest.mark.full
def test_a_driver_without_parsls_interchange_ends_its_allocations_and_says_why(
    small, study, fake_slurm, processes
):
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.slurm.command", "run", str(small), "--site", "loopback"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: any(pilot.job_id for pilot in read_pilots(study.directory)), "an allocation")
    [interchange] = interchanges(driver.pid)
    os.kill(interchange, signal.SIGKILL)
    stdout, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "Parsl's interchange has ended; see " in stdout + stderr
    assert "Traceback" not in stdout + stderr
    assert fake_slurm.jobs() == []


@pytest.mark.full
def test_an_attempt_whose_end_cannot_be_recorded_is_a_failure_at_once(small, study, fake_slurm, processes):
    fake_slurm.say(sbatch=["starts"], srun=["mute"])
    argv = [sys.executable, "-m", "tests.slurm.command", "run", str(small), "--site", "loopback"]
    argv += ["--set", "resources.retries=0"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    for number in range(2):
        said = done.stdout.splitlines()[-3 + number]
        assert "its end could not be recorded: LaunchError: " in said
        assert "attempt-001.exit.json: could not be written or read back" in said


def interchanges(driver: int) -> list[int]:
    """Return the children of a driver."""
    found = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_ended_with_all_of_its_group_leaves_no_process(small, study, fake_slurm, number):
    argv = [sys.executable, "-m", "tests.slurm.command", "run", str(small), "--site", "loopback"]
    driver = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline_s = time.monotonic() + 60
    while not any(pilot.job_id for pilot in read_pilots(study.directory)):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    children = interchanges(driver.pid)
    assert len(children) == 1
    assert os.getpgid(children[0]) != driver.pid, "a terminal's Ctrl-C does not reach it"
    os.killpg(driver.pid, number)
    assert driver.wait(timeout=60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert (fake_slurm.jobs() == []) == (number == signal.SIGINT), "only the dead cannot cancel"
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.full)])
@pytest.mark.timeout(1200)
def test_a_study_of_many_runs_loses_none(small, fake_slurm, count, tmp_path):
    fake_slurm.say(sbatch=["starts"], srun=["finish"])
    argv = [
        *(sys.executable, "-m", "tests.slurm.command", "run", str(small), "--site", "loopback", "--json"),
        *("--set", f"sweep.grid={{train.seed: {list(range(count))}}}"),
        *("--set", "pilots={nodes: 4, at_most: 2}"),
    ]
    started_s = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1100, env={**os.environ})
    ticks = (time.monotonic() - started_s) / 0.5
    result = json.loads(done.stdout)
    assert [run["state"] for run in result["runs"]] == ["done"] * count, done.stderr[-2000:]
    attempts = [list(path.glob("*.exit.json")) for path in (tmp_path / "runs" / "small").glob("seed*")]
    assert {len(found) for found in attempts} == {1}
    assert len(fake_slurm.calls("squeue")) <= ticks
    assert asked(fake_slurm) <= 4
    [peak] = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("peak_kib ")]
    print(
        f"{count} runs, {asked(fake_slurm)} allocations, {len(fake_slurm.calls('squeue'))} questions, peak {peak} KiB"
    )
    assert peak < 300 * 1024
