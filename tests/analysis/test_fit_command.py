"""`isoflop fit` on a table, as a process: one JSON document on stdout, or one sentence on stderr."""

from __future__ import annotations

import json
import re
import sys

import pytest

from analysis.errors import DataError
from tests.analysis.studies import study
from tests.conftest import Finished, run_process
from tests.workflows.conftest import ISOFLOP
from workflows.fits import Source, fit_all, keep

COLUMNS = "N=Model Size,C=Training FLOP,L=loss"


def command(*args: object) -> Finished:
    return run_process([ISOFLOP, "fit", "--law", "chinchilla", *map(str, args)])


@pytest.fixture
def table(tmp_path):
    """A table of 20 runs without noise."""
    points = study(0, noise=0.0)
    rows = [
        f"{N!r},{6 * N * D!r},{L!r}"
        for N, D, L in zip(*(a.tolist() for a in (points.N, points.D, points.L)), strict=True)
    ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["Model Size,Training FLOP,loss", *rows]))
    return path


def test_a_table_gives_one_json_document(shared_data):
    data = shared_data("scaling/epoch_chinchilla_245.csv")
    done = command(
        "--data", data, "--columns", COLUMNS, "--drop-highest-loss", 5, "--bootstrap", 200, "--json"
    )
    assert (done.status, done.stderr) == (0, "")
    told = json.loads(done.stdout, parse_constant=pytest.fail)
    assert told["params"]["alpha"] == pytest.approx(0.3473, abs=3e-4)
    assert told["objective"] <= 0.0010182741 + 2e-9
    for name, value in told["params"].items():
        assert told["stderr"][name] > 0
        assert told["intervals"][name][0] < value < told["intervals"][name][1]
    for optimum in told["compute_optimal"]:
        assert 6 * optimum["N"] * optimum["D"] == pytest.approx(optimum["C"])
        assert optimum["intervals"].keys() == {"N", "D", "L"}
    assert len(told["exclusions"]) == 5
    assert (told["source"], told["flops_convention"]) == (str(data), "C = 6 N D")


def test_without_json_the_same_is_a_table_for_people(table):
    done = command("--data", table, "--columns", COLUMNS, "--bootstrap", 0)
    assert (done.status, done.stderr) == (0, "")
    assert re.search(r"^alpha +0\.34$", done.stdout, re.MULTILINE)
    assert "20 points; sum of Huber terms" in done.stdout


@pytest.mark.parametrize(
    ("change", "args", "sentence"),
    [
        (
            {},
            ["--columns", "N=Model Size,C=Training FLOPs,L=loss"],
            "no column 'Training FLOPs' for C; there is 'Training FLOP'",
        ),
        ({}, [], "columns: name L and two of N, D, C"),
        ({}, ["--columns", COLUMNS, "--law", "chinchila"], "no law 'chinchila'; there is chinchilla"),
        ({}, ["--columns", COLUMNS, "--drop-highest-loss", "18"], "2 points with"),
        ({"row": "1,1,-3"}, ["--columns", COLUMNS], "table.csv:22: column 'loss' holds -3"),
    ],
    ids=["column", "no columns", "law", "too few", "value"],
)
def test_a_mistake_in_the_data_is_one_sentence_and_exit_2(table, change, args, sentence):
    if "row" in change:
        table.write_text(table.read_text() + "\n" + change["row"])
    done = command("--data", table, *args)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("isoflop: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def test_a_fit_that_does_not_converge_is_exit_6(table):
    hasty = "from analysis import minimise; minimise.MAX_STEPS = 2; from workflows.cli import main; main()"
    done = run_process(
        [sys.executable, "-c", hasty, "fit", "--data", str(table), "--columns", COLUMNS, "--json"]
    )
    assert (done.status, done.stdout) == (6, "")
    assert "the chinchilla fit stopped at a scaled gradient of" in done.stderr
    assert done.stderr.count("\n") == 1


def verb(name: str, *args: object) -> Finished:
    return run_process([ISOFLOP, name, *map(str, args)])


@pytest.fixture
def isoflops(tmp_path):
    """A table of 9 sizes at each of 4 budgets, without noise, in curves of three points a run."""
    rows = ["run,N,D,loss"]
    for i, flops in enumerate((1e18, 1e19, 1e20, 1e21)):
        for j in range(9):
            N = 0.1 * flops**0.5 * 1.5 ** (j - 4)
            D = flops / 6 / N
            rows.append(f"run-{i}-{j},{N!r},{D!r},{1.69 + 406.4 / N**0.34 + 410.7 / D**0.28!r}")
    path = tmp_path / "isoflops.csv"
    path.write_text("\n".join(rows))
    return path


def test_all_approaches_are_told_side_by_side(isoflops):
    args = ("--data", isoflops, "--columns", "N=N,D=D,L=loss", "--bootstrap", 20)
    told = json.loads(command(*args, "--approach", "isoflop", "--profile", "E", "--json").stdout)
    assert told["approach"] == "isoflop"
    found = told["allocations"]
    assert found.keys() == {"parametric", "isoflop", "isoflop, interpolation", "envelope"}
    assert found["parametric"]["a"] == pytest.approx(0.28 / 0.62, abs=1e-4)
    assert found["isoflop"]["a"] == pytest.approx(0.28 / 0.62, abs=0.01)
    assert "the envelope needs curves" in found["envelope"]["problem"]
    refused = command(*args, "--approach", "envelope")
    assert (refused.status, refused.stdout) == (2, "")
    assert "no column says which run a point is of (run=column)" in refused.stderr


def test_predictions_and_optima_have_intervals_and_say_how_far_they_reach(isoflops):
    args = ("--data", isoflops, "--columns", "N=N,D=D,L=loss", "--bootstrap", 20)
    told = json.loads(verb("predict", *args, "--at", "N=1e13,D=1e14", "--json").stdout)
    assert told["L"] == pytest.approx(1.69 + 406.4 / 1e13**0.34 + 410.7 / 1e14**0.28, rel=1e-5)
    assert any("times beyond the fitted range of N" in sentence for sentence in told["warnings"])
    done = verb("optimal", *args, "--flops", "1e20", "--flops", "1e30")
    assert (done.status, done.stderr) == (0, "")
    assert "times beyond the fitted range of" in done.stdout
    wrong = verb("predict", *args, "--at", "N=big")
    assert (wrong.status, wrong.stderr) == (2, "isoflop: --at: N=big, a number is needed\n")
    short = verb("predict", *args, "--at", "N=1e9")
    assert (short.status, short.stderr) == (2, "isoflop: D is needed and does not follow from N\n")


def test_laws_are_compared_and_scaling_is_told(isoflops, tmp_path):
    args = ("--data", isoflops, "--columns", "N=N,D=D,L=loss")
    done = verb("compare", *args, "--laws", "kaplan,chinchilla")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("chinchilla is preferred to kaplan by")
    times = tmp_path / "times.csv"
    times.write_text("p,t\n" + "\n".join(f"{p},{100 * (0.05 + 0.95 / p)}" for p in (1, 2, 4, 8, 16)))
    told = json.loads(
        verb("scaling", "--data", times, "--bootstrap", 0, "--json").stdout, parse_constant=pytest.fail
    )
    assert told["rows"][0]["efficiency"] == 1.0
    assert told["rows"][0]["serial_fraction"] is None
    assert told["fits"][0]["params"]["f"] == pytest.approx(0.05, abs=1e-9)


def test_a_fit_is_kept_with_a_note_and_a_report(isoflops, tmp_path):
    args = ("--data", isoflops, "--columns", "x=N,L=loss", "--law", "power", "--bootstrap", 20, "--json")
    done = verb("fit", *args, "--profile", "all", "--out", tmp_path / "kept", "--tau", 0.4, "--delta", 1)
    told = json.loads(done.stdout)
    assert told["profiles"].keys() == {"A", "alpha"}
    assert (told["tau"], told["delta"]) == (0.4, 1.0)
    files = [tmp_path / "kept" / name for name in ("fit.json", "fit.md", "fit.h5", "report.html")]
    assert done.stderr.split() == [str(path) for path in files]
    assert json.loads(files[0].read_text())["params"] == told["params"]
    note = files[1].read_text()
    assert note.startswith("# power\n\n`y = A x^-alpha")
    assert f"| alpha | {told['params']['alpha']:.6g} |" in note
    assert "| parameter | 95 % interval by profile |" in note
    assert "36 points, " in files[3].read_text()


def test_an_exponent_alone_is_no_law_to_keep(isoflops, tmp_path):
    source = Source(data=isoflops, columns="N=N,D=D,L=loss", bootstrap=0)
    with pytest.raises(DataError, match=r"--out .*none: --approach isoflop fits no law that could be kept$"):
        keep(fit_all(source, "isoflop", []), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_points_of_size_and_tokens_are_reported_as_runs(table, tmp_path):
    source = Source(data=table, columns=COLUMNS, bootstrap=0)
    *_, report = keep(fit_all(source, "parametric", []), tmp_path / "kept")
    page = report.read_text()
    assert "20 of 20 runs finished" in page
    assert page.count("<svg") == 3, "law, residuals, frontier"
