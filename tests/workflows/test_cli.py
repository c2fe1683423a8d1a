"""The command: quick to help, data on stdout and talk on stderr, one sentence and the right code for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from launch.rundir import ExitRecord, RunDir, make_private, write_exit
from tests.conftest import ROOT
from workflows.arguments import emit

QUICKSTART = ROOT / "studies" / "quickstart.yaml"
HEAVY = {"torch", "mpi4py", "parsl", "scipy", "matplotlib", "h5py"}


def imported_by(*args: str) -> set[str]:
    """Return the heavy packages that the command has loaded when it ends."""
    program = (
        "import sys, workflows.cli as c\nsys.argv = ['isoflop', *sys.argv[1:]]\n"
        "try: c.main()\nexcept SystemExit: pass\n"
        f"print(*({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("args", [("--help",), ("run", "--help")], ids=" ".join)
def test_help_loads_nothing_heavy(args):
    assert imported_by(*args) == set()


@pytest.mark.parametrize("args", [("plan", str(QUICKSTART)), ("list", "workflows")], ids=lambda args: args[0])
def test_reading_verbs_need_neither_torch_nor_mpi(args):
    assert imported_by(*args, "--json") & {"torch", "mpi4py", "parsl"} == set()


def test_a_plan_touches_nothing(small, isoflop):
    before = sorted(small.parent.rglob("*"))
    plan = json.loads(isoflop("plan", small, "--json").stdout)
    assert [run["config"]["model"]["width"] for run in plan["runs"]] == [16, 32]
    assert all(run["d_tokens"] == 10 * 4 * 32 for run in plan["runs"])
    assert all(run["id"] in isoflop("plan", small).stdout for run in plan["runs"])
    assert sorted(small.parent.rglob("*")) == before


def test_any_key_can_be_overridden(small, isoflop):
    done = isoflop("plan", small, "--json", "--set", "base.model.layers=3", "--set", "name=other")
    plan = json.loads(done.stdout)
    assert {run["config"]["model"]["layers"] for run in plan["runs"]} == {3}
    assert plan["study"] == "other"


@pytest.mark.parametrize(("what", "name"), [("sites", "local"), ("laws", "chinchilla"), ("workflows", "llm")])
def test_lists_name_what_is_there(isoflop, what, name):
    listed = json.loads(isoflop("list", what, "--json").stdout)
    assert name in [row["name"] for row in listed]
    assert all(row["description"] for row in listed)
    assert name in isoflop("list", what).stdout


def test_a_study_that_never_ran_is_pending(small, isoflop):
    status = json.loads(isoflop("status", small, "--json").stdout)
    assert [(s["state"], s["attempts"]) for s in status] == [("pending", 0)] * 2


@pytest.fixture
def twice_begun(small, isoflop) -> RunDir:
    """Return a run whose first attempt lost its time, and whose second one was killed with its driver."""
    [name, *_] = [run["id"] for run in json.loads(isoflop("plan", small, "--json").stdout)["runs"]]
    run = RunDir(make_private(small.parent / "runs" / "small" / name))
    write_exit(run, 1, ExitRecord(75, "the walltime was over", -1, 5, 0.0, 1.0))
    run.attempt(2, "out").write_text("rank 1: hello\nnobody's\n")
    run.attempt(2, "err").write_text(
        "[rank1]: Traceback\n[rank11]: Traceback\nrank 0: x\n" + "rank 1: y\n" * 150
    )
    return run


def test_status_says_why_the_attempt_before_ended(small, isoflop, twice_begun):
    [status, _] = json.loads(isoflop("status", small, "--json").stdout)
    assert (status["state"], status["cause"]) == ("interrupted", "attempt 1: the walltime was over")
    write_exit(twice_begun, 2, ExitRecord(1, "ValueError: boom", 1, 5, 0.0, 1.0))
    [status, _] = json.loads(isoflop("status", small, "--json").stdout)
    assert status["cause"] == "ValueError: boom"


def test_the_log_of_one_rank_is_the_end_of_what_names_it(isoflop, twice_begun):
    whole = isoflop("logs", twice_begun.path)
    assert (
        whole.stdout == twice_begun.attempt(2, "out").read_text() + twice_begun.attempt(2, "err").read_text()
    )
    held = json.loads(isoflop("logs", twice_begun.path, "--rank", 1, "--json").stdout)
    assert held == {
        "run": twice_begun.path.name,
        "attempt": 2,
        "rank": 1,
        "out": "rank 1: hello\n",
        "err": "rank 1: y\n" * 100,
    }
    assert isoflop("logs", twice_begun.path, "--rank", 11).stdout == "[rank11]: Traceback\n"
    nobody = isoflop("logs", twice_begun.path, "--rank", 7)
    assert (nobody.status, nobody.stdout) == (0, "")
    assert nobody.stderr.startswith("no line of attempt 2 says that it is of rank 7")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("list", "sights"), "list sights: there are sites, laws, workflows"),
        (("logs", "no-such-run"), "no run 'no-such-run' in runs/*/"),
        (("plan", "missing.yaml"), "missing.yaml: No such file or directory"),
        (("status", "missing.yaml"), "missing.yaml: No such file or directory"),
        (
            ("fit", "--data", "missing.csv", "--columns", "N=a,D=b,L=c"),
            "missing.csv: No such file or directory",
        ),
        (("report", "."), "study.yaml: No such file or directory"),
    ],
)
def test_what_is_not_there_is_named(isoflop, args, sentence):
    done = isoflop(*args)
    assert (done.status, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "args", [("frobnicate",), ("plan",), ("run", "x.yaml", "--sett", "a=b")], ids=" ".join
)
def test_wrong_usage_ends_with_2(isoflop, args):
    done = isoflop(*args)
    assert (done.status, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_what_is_no_number_is_null_in_json(capsys):
    emit({"loss": float("nan"), "runs": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "loss": None,
        "runs": [None, 1.5],
    }
