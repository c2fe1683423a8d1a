"""The report: one file that needs nothing else, whatever the runs are called and however they ended."""

from __future__ import annotations

import re
import shutil
import stat
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest

from analysis import FitResult, fit
from analysis.errors import DataError
from analysis.plots import short
from analysis.report import PLOTS, write_report
from analysis.store.schema import ROW
from analysis.summary import RunSummary, coefficient_rows, hold_out_rows
from tests.analysis.studies import TRUTH, losses, study, typical

HOSTILE = "<script>alert('$x^{$')</script>&\"\x27_$\\frac$"


def test_a_law_of_compute_alone_is_reported_too(tmp_path):
    found = fit("power", study(1, 4, 3, noise=0.002), bootstrap=20)
    held = run("larger", 4e9, 4e11, 2.2, held_out=True)
    page = write_report(tmp_path, "compute", runs(held), found).read_text()
    assert "<h2>Law: power</h2>" in page
    assert "id='hold_outs'" in page
    assert "id='frontier'" not in page


@pytest.mark.parametrize("law", ["parscale", "rl_sigmoid"])
def test_points_that_are_no_runs_are_shown_by_how_far_they_lie_off(tmp_path, law):
    points = typical(law, 0.01)
    found = fit(law, points, hold={"R0": 0.22} if law == "rl_sigmoid" else None, bootstrap=0)
    page = write_report(tmp_path, HOSTILE, [], found, points=points)
    text = page.read_text()
    assert f"{len(points)} points, " in Page(text).text
    assert text.count("<title>row ") == len(points)
    off = points.y[7] - found.predict(**{name: column[7] for name, column in points.x.items()})
    gap = off if law == "rl_sigmoid" else 100 * off / (points.y[7] - off)
    assert f"row 7: {points.y[7]:.6g}, {gap:+.3g} off" in text
    assert [path.stem for path in (tmp_path / "plots").glob("*.png")] == ["agreement"]


@cache
def fitted(bootstrap: int = 100) -> FitResult:
    return fit("chinchilla", study(1, 4, 3, noise=0.002), bootstrap=bootstrap)


def run(run_id: str, N: float, D: float, L: float | None, **changed: object) -> RunSummary:
    steps = np.arange(0, 11)
    curve = np.zeros(11, ROW)
    curve["step"], curve["tokens"] = steps, steps * D / 10
    curve["value"] = (L or 5.0) + 3 * np.exp(-steps / 2.0)
    held = RunSummary(
        run_id=run_id,
        state="failed" if L is None else "done",
        N=N,
        D=D,
        C=6.2 * N * D,
        ranks=2,
        loss=L,
        wall_s=None if L is None else 12.3,
        held_out=False,
        excluded=False,
        cause="rank 1 died" if L is None else "",
        curves={"train_loss": curve, "val_loss": curve[::5]},
    )
    return replace(held, **changed)


def runs(*more: RunSummary) -> list[RunSummary]:
    points = study(1, 4, 3, noise=0.002)
    fitted_runs = [
        run(f"run-{i}", *values) for i, values in enumerate(zip(points.N, points.D, points.L, strict=True))
    ]
    return [*fitted_runs, *more]


def held_out(run_id: str = "large") -> RunSummary:
    N, D = np.array([4e9]), np.array([4e11])
    return run(run_id, 4e9, 4e11, 1.01 * float(losses("chinchilla", TRUTH, N, D)[0]), held_out=True)


class Page(HTMLParser):
    """Tags, addresses and the text outside of scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attributes if name.split(":")[-1] in ("href", "src", "action")
        ]

    def handle_data(self, data):
        self.text += data


def written(tmp_path, *args) -> Page:
    path = write_report(tmp_path, *args)
    assert path == tmp_path / "report.html"
    return Page(path.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report of a study with everything in it: (directory, page). Drawing takes seconds."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, written(directory, "widths", runs(held_out()), fitted())


def test_a_report_needs_nothing_but_itself(whole):
    tmp_path, page = whole
    assert page.tags.count("svg") == 5
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert all(address.startswith("#") for address in page.addresses)
    text = (tmp_path / "report.html").read_text()
    assert re.findall(r"url\((?!#)|@import", text) == []
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == PLOTS - {
        "scores",
        "scaling",
        "speeds",
        "agreement",
    }  # those of embeddings, of runs that tell their speed, and of points that are no runs
    for path in (tmp_path / "plots").iterdir():
        assert path.read_bytes().startswith({".png": b"\x89PNG", ".pdf": b"%PDF"}[path.suffix]), path
    for path in (tmp_path / "report.html", *(tmp_path / "plots").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_numbers_are_those_of_the_fit(whole):
    given, (_, page) = runs(held_out()), whole
    cells = [cell for row in (*coefficient_rows(fitted()), *hold_out_rows(fitted(), given)) for cell in row]
    assert all(cell in page.text for cell in cells)
    for name, value in fitted().params.items():
        assert f"{name}{value:.6g}{fitted().stderr[name]:.3g}" in page.text
    predicted = fitted().predict(N=4e9, D=4e11)
    assert f"{predicted:.4f}" in page.text
    assert f"{100 * (predicted / given[-1].measured - 1):+.2f} %" in page.text
    assert f"{100 * (fitted().mean_loss / given[-1].measured - 1):+.2f} %" in page.text
    assert "13 of 13 runs finished" in page.text


def test_hostile_names_and_causes_are_text(tmp_path):
    bad = run(HOSTILE, 1e8, 1e10, None, cause=HOSTILE)
    page = written(tmp_path, HOSTILE, runs(held_out(HOSTILE), bad), fitted(), HOSTILE)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 4
    assert f"{HOSTILE} failed: {HOSTILE}" in page.text


@pytest.mark.parametrize("state", ["pending", "failed", "interrupted"])
def test_no_finished_run_is_a_report_without_a_fit(tmp_path, state):
    waiting = [run(f"run-{i}", 1e8, 1e10, None, state=state, curves={}) for i in range(2)]
    page = written(tmp_path, "widths", waiting, None, "no run has finished")
    assert "0 of 2 runs finished" in page.text
    assert "No fit: no run has finished" in page.text
    assert "svg" not in page.tags
    assert page.text.count("failed: rank 1 died") == (2 if state == "failed" else 0)


def test_without_a_fit_the_curves_are_shown_all_the_same(tmp_path):
    given = [replace(one, tokens_per_s=1e4) for one in runs()]
    page = written(tmp_path, "widths", given, None)
    assert "No fit" not in page.text, "none was asked for"
    assert page.tags.count("svg") == 2
    assert (tmp_path / "plots" / "speeds.png").exists()


def test_without_resamples_no_interval_is_made_up(tmp_path):
    page = written(tmp_path, "widths", runs(held_out()), fitted(bootstrap=0))
    [row] = hold_out_rows(fitted(bootstrap=0), [held_out()])
    assert row[3] == ""
    assert page.tags.count("svg") == 5
    assert "0 bootstrap resamples" in page.text


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_diverged_run_does_not_spoil_the_plot(tmp_path, share):
    bad = run("diverged", 1e8, 1e10, None)
    for curve in bad.curves.values():
        curve["value"][int(len(curve) * (1 - share)) :] = np.nan
    page = written(tmp_path, "widths", [bad] if share == 1.0 else runs(bad), None)
    assert page.tags.count("svg") == 1
    assert "diverged failed: rank 1 died" in page.text


def test_a_law_without_a_frontier_is_reported(tmp_path):
    no_trade = replace(
        fitted(), params={**fitted().params, "B": 0.0}, unidentified={"B": "it stands at a bound"}
    )
    page = written(tmp_path, "widths", runs(), no_trade)
    assert "NOT IDENTIFIED: it stands at a bound" in page.text


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path, name):
    (tmp_path / "file").touch()
    directory = tmp_path / name
    for write in (
        lambda: write_report(directory, "widths", [], None),
        lambda: fitted().write(directory),
    ):
        with pytest.raises(DataError, match=rf"^{directory}: the (report|fit) cannot be written \([^\n]*\)$"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_report_is_replaced_whole(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    page = written(tmp_path, "widths", runs(), None, "too few")
    assert "No fit: too few" in page.text
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"loss_curves"}, (
        "no plot of an older fit"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(67_800, "67.8k"), (6_940_000, "6.94M"), (3.84e12, "3.84e12"), (999, "999"), (2e9, "2B")],
)
def test_counts_are_written_as_a_person_writes_them(value, text):
    assert short(value) == text
