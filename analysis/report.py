"""A study's report: one HTML file that needs nothing else, and its plots as PNG and PDF beside it."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from analysis import plots, scaling_plots
from analysis.compare import Comparison, verdict
from analysis.errors import DataError
from analysis.result import FitResult
from analysis.summary import (
    COEFFICIENT_COLUMNS,
    COMPARISON_COLUMNS,
    HOLD_OUT_COLUMNS,
    RUN_COLUMNS,
    SPREAD_COLUMNS,
    Row,
    RunSummary,
    coefficient_rows,
    comparison_rows,
    hold_out_rows,
    remarks,
    run_rows,
    spread_rows,
)
from analysis.table import Observations

PNG_DPI = 130
IMAGES = ("png", "pdf")
PLOTS = frozenset(
    {"loss_curves", "law", "hold_outs", "residuals", "frontier", "scores", "scaling", "speeds", "agreement"}
)
"""Every plot that a report may have."""
STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #6b7280; --line: #e3e5e8; --paper: #fff; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #32363c; --paper: #16181b; --bad: #ff8a80; }
  figure { background: #fff; border-radius: 6px; padding: 6px; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p.soft, figcaption { color: var(--soft); font-size: .9rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
.told:hover { stroke: #000; stroke-width: 2px; }
"""


def write_report(
    directory: Path,
    study: str,
    runs: Sequence[RunSummary],
    fit: FitResult | None,
    problem: str = "",
    laws: Sequence[Comparison] = (),
    points: Observations | None = None,
) -> Path:
    """Write `report.html` and `plots/*.{png,pdf}` into `directory` and return the path of the report.

    Without a fit the report shows what the runs hold, and says with `problem` why there is none, if there should be.
    `laws` are shown side by side. A fit to `points` that are no runs is shown by how far they lie off it.

    Raises:
        DataError: the directory cannot be written.
    """
    figures = _figures(runs, fit, points)
    page = _page(
        study, runs, fit, problem, laws, [(name, caption, _svg(figure)) for name, caption, figure in figures]
    )
    try:
        (directory / "plots").mkdir(mode=0o700, exist_ok=True)
        for name in PLOTS.difference(
            name for name, _, _ in figures
        ):  # an older report's would contradict this one
            for kind in IMAGES:
                (directory / "plots" / f"{name}.{kind}").unlink(missing_ok=True)
        for name, _, figure in figures:
            for kind in IMAGES:
                _write(directory / "plots" / f"{name}.{kind}", _image(figure, kind))
        _write(directory / "report.html", page.encode())
    except OSError as error:
        raise DataError(f"{directory}: the report cannot be written ({error.strerror or error})") from None
    return directory / "report.html"


def _figures(
    runs: Sequence[RunSummary], fit: FitResult | None, points: Observations | None
) -> list[tuple[str, str, Figure]]:
    """Return (file name, caption, figure) of every plot that there is data for."""
    made: list[tuple[str, str, Figure | None]] = [
        ("loss_curves", "Loss of every run.", plots.loss_curves(runs)),
        ("speeds", "Training speed of every run.", plots.speeds(runs)),
    ]
    made.append(("scores", "F1 by the share of labels that train.", scaling_plots.scores(runs)))
    if fit and points and not runs:
        made.append(("agreement", "What the law leaves unexplained.", plots.agreement(fit, points)))
    elif fit and "p" in fit.ranges:
        made.append(("scaling", "Wall time by ranks and the law.", scaling_plots.times(fit, runs)))
    elif fit:
        made += [
            ("law", "Final losses and the fitted law, one curve a size.", plots.law(fit, runs)),
            ("hold_outs", "Runs that the fit never saw.", plots.hold_outs(fit, runs)),
            ("residuals", "What the law leaves unexplained.", plots.residuals(fit, runs)),
            ("frontier", "Compute-optimal size and loss.", plots.frontier(fit, runs)),
        ]
    return [(name, caption, plots.finish(figure)) for name, caption, figure in made if figure]


def _page(
    study: str,
    runs: Sequence[RunSummary],
    fit: FitResult | None,
    problem: str,
    laws: Sequence[Comparison],
    figures: Sequence[tuple[str, str, str]],
) -> str:
    done = sum(run.state == "done" for run in runs)
    told = f"{fit.n_points} points" if fit and not runs else f"{done} of {len(runs)} runs finished"
    parts = [f"<h1>{escape(study)}</h1>", f"<p class='soft'>{told}, {_now()}</p>"]
    failed = [run for run in runs if run.state == "failed"]
    parts += [f"<p class='bad'>{escape(run.run_id)} failed: {escape(run.cause)}</p>" for run in failed]
    if fit:
        held = hold_out_rows(fit, runs)
        if held:
            parts += ["<h2>Prediction of the held-out runs</h2>", _table(HOLD_OUT_COLUMNS, held)]
            parts.append("<p class='soft'>constant: the error of the mean fitted loss as a prediction</p>")
        parts += [f"<h2>Law: {escape(fit.law)}</h2>", _table(COEFFICIENT_COLUMNS, coefficient_rows(fit))]
        parts += [f"<p class='soft'>{escape(sentence)}</p>" for sentence in remarks(fit)]
    elif problem:
        parts.append(f"<p class='bad'>No fit: {escape(problem)}</p>")
    if laws:
        parts += ["<h2>Laws side by side</h2>", _table(COMPARISON_COLUMNS, comparison_rows(laws))]
        parts.append(f"<p class='soft'>{escape(verdict(laws))}; all by least squares of logarithms</p>")
    for name, caption, svg in figures:
        parts.append(f"<figure id='{name}'>{svg}<figcaption>{escape(caption)}</figcaption></figure>")
    if runs:
        parts += ["<h2>Runs</h2>", _table(RUN_COLUMNS, run_rows(runs))]
    if spread := spread_rows(runs):
        parts += ["<h2>Time and memory</h2>", _table(SPREAD_COLUMNS, spread)]
    if fit:
        parts.append(
            f"<p class='soft'>data {fit.data_sha256[:16]} from {escape(fit.source)}, seed {fit.seed}</p>"
        )
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    head += f"<title>{escape(study)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _table(columns: Row, rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def _cell(text: str) -> str:
    return f"<td{' class=bad' if text.startswith(('NOT ', 'failed')) else ''}>{escape(text)}</td>"


def _svg(figure: Figure) -> str:
    """Return the figure as an SVG element without a prologue, its text as text, with titles for the pointer.

    An id that begins with `plots.TOLD` becomes a title, escaped as it is: browsers show it without any script.
    """
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "isoflop"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)", "", drawn.getvalue(), flags=re.DOTALL)
    return re.sub(rf'<g id="{plots.TOLD}([^"]*)">', r'<g class="told"><title>\1</title>', svg)


def _image(figure: Figure, kind: str) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, dpi=PNG_DPI, metadata={"CreationDate": None} if kind == "pdf" else {})
    return drawn.getvalue()


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    beside.rename(path)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M")
