"""What the command prints: tables on stdout, a live view or one line every 30 s on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from workflows.errors import ConfigError
from workflows.progress import RunStatus, one_line, study_status
from workflows.study import Study

if TYPE_CHECKING:
    from analysis.result import FitResult
    from workflows.conclude import Fitted
    from workflows.dag import StudyResult
    from workflows.workflow import Footprint

LINE_EVERY_S = 30.0
PLAIN_WIDTH = 160
Rows = Sequence[Sequence[object]]


def plan_data(study: Study) -> dict[str, Any]:
    """Return the plan as JSON-able data."""
    return {
        "study": study.file.name,
        "directory": str(study.directory),
        "site": study.site.name,
        "cores": study.site.usable_cores(),
        "estimated_s": study.estimated_s(),
        "runs": [
            {
                "id": run.id,
                "held_out": run.held_out,
                "ranks": run.resources.ranks,
                "threads": run.resources.threads,
                **asdict(run.size),
                **(study.workflow.facts(run.config, run.resources.ranks) if study.workflow.facts else {}),
                "estimated_s": run.estimated_s(study.site),
                "footprint": asdict(footprint) if footprint else None,
                "config": run.config.model_dump(mode="json"),
            }
            for run, footprint in zip(study.runs, _footprints(study), strict=True)
        ],
    }


def plan_text(study: Study) -> str:
    """Return the plan as a table, another of memory and messages where ranks share runs, and one line."""
    columns: tuple[str, ...] = ("run", "ranks", "N", "N non-emb.", "tokens", "FLOPs", "about")
    rows = []
    for run in study.runs:
        shown: tuple[str, ...] = (
            f"{run.size.n_total:,}",
            f"{run.size.n_nonembedding:,}",
            f"{run.size.d_tokens:,}",
            f"{run.size.c_flops:.3g}",
        )
        if study.workflow.facts:
            facts = study.workflow.facts(run.config, run.resources.ranks)
            shown = tuple(_fact(name, value) for name, value in facts.items())
            columns = ("run", "ranks", *(name.replace("_bytes", " a rank") for name in facts), "about")
        named = run.id + (" (hold-out)" if run.held_out else "")
        rows.append((named, run.resources.ranks, *shown, duration(run.estimated_s(study.site))))
    total = sum(run.size.c_flops for run in study.runs)
    return table(columns, rows) + (
        f"\n{_layout_text(study)}{len(rows)} runs, {total:.3g} FLOPs ({study.runs[0].size.flops_convention}), about "
        f"{duration(study.estimated_s())} on {study.site.usable_cores()} cores of site '{study.site.name}'; "
        f"results in {study.directory}"
    )


def _fact(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return size(int(value)) if name.endswith("_bytes") else f"{value:,}"


def _footprints(study: Study) -> list[Footprint | None]:
    """Return what each run's layout costs a rank, None where its kind of run does not say."""
    known = study.workflow.footprint
    return [known(run.config, run.resources.ranks) if known else None for run in study.runs]


def _layout_text(study: Study) -> str:
    """Return a row for each run that ranks share: parameters by place, memory of the fullest, messages a step."""
    rows = []
    for run, footprint in zip(study.runs, _footprints(study), strict=True):
        if footprint is None or run.resources.ranks == 1:
            continue
        fullest, numbers = footprint.fullest, [rank.parameters for rank in footprint.ranks]
        least, most = f"{min(numbers):,}", f"{max(numbers):,}"
        rows.append(
            (
                run.id,
                " ".join(f"{axis}{ranks}" for axis, ranks in footprint.layout.items() if ranks > 1),
                least if least == most else f"{least} to {most}",
                f"{size(fullest.peak_bytes)} ({fullest.place})",
                size(fullest.static_bytes),
                f"{max(rank.messages for rank in footprint.ranks):,}",
            )
        )
    columns = ("run", "layout", "parameters a rank", "memory a rank", "of it static", "messages a step")
    return f"\n{table(columns, rows)}\n\n" if rows else ""


@contextmanager
def watching(study: Study) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """Yield (tick, say): a live table on a terminal, else a line every 30 s; both on stderr."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield (
                lambda: live.update(status_table(study_status(study)), refresh=True),
                lambda sentence: live.console.print(sentence, markup=False),
            )
        return
    due_s = time.monotonic() + LINE_EVERY_S

    def tick() -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            due_s += LINE_EVERY_S
            print(one_line(study_status(study)), file=sys.stderr, flush=True)

    yield tick, lambda sentence: print(sentence, file=sys.stderr, flush=True)


def status_table(statuses: list[RunStatus]) -> Table:
    """Return the live view: a row a run."""
    rows = [
        (
            status.run_id + (" (hold-out)" if status.held_out else ""),
            status.state + (f" (attempt {status.attempts})" if status.attempts > 1 else ""),
            _known(status.step, "{:,}"),
            _known(status.tokens and 100 * status.tokens / status.d_tokens, "{:.0f} %"),
            _known(status.loss, "{:.4f}"),
            _known(status.tokens_per_s, "{:,.0f}"),
            "measured wrong" if status.measuring_error else _known(status.peak_share, "{:.1%}"),
            "" if status.left_s is None else duration(status.left_s),
            "" if status.heard_s is None else time.strftime("%m-%d %T", time.localtime(status.heard_s)),
            status.cause,
        )
        for status in statuses
    ]
    return _table(
        ("run", "state", "step", "done", "loss", "tokens/s", "of peak", "left", "heard", "cause"), rows
    )


def status_text(statuses: list[RunStatus], jobs: Sequence[str] = ()) -> str:
    """Return the status as text: the table, a line for each job, and where the logs of unfinished runs are."""
    logs = [f"log: {status.log}" for status in statuses if status.log and status.state != "done"]
    return "\n".join([_render(status_table(statuses)), *jobs, *logs])


def status_data(statuses: list[RunStatus]) -> list[dict[str, Any]]:
    """Return the status as JSON-able data."""
    return [{**asdict(s), "log": str(s.log) if s.log else None} for s in statuses]


def exit_code(result: StudyResult) -> int:
    """Return the exit code of the contract: 130 interrupted (75 by the scheduler), 1 a run failed, else the fit's."""
    if result.interrupted:
        return 75 if result.warned else 130
    if result.failures or result.fitted is None:
        return 1
    return result.fitted.exit_code


def listing(what: str) -> list[tuple[str, str]]:
    """Return (name, one sentence) of every site, law or workflow. Raises ConfigError for anything else."""
    from analysis import laws
    from slurm import site
    from workflows import workflow

    known: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "sites": lambda: [(name, site.load_site(name).description) for name in site.names()],
        "laws": lambda: [(name, laws.get(name).description) for name in laws.names()],
        "workflows": lambda: [(name, workflow.get(name).description) for name in workflow.names()],
    }
    if what not in known:
        raise ConfigError(f"list {what}: there are {', '.join(known)}")
    return known[what]()


def lines(rows: list[tuple[str, str]]) -> str:
    """Return names and sentences, one a line, the sentences aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {sentence}" for name, sentence in rows)


def table(columns: Sequence[str], rows: Rows) -> str:
    """Return rows as an aligned text table, as wide as it needs to be when stdout is not a terminal."""
    return _render(_table(columns, rows))


def duration(seconds: float) -> str:
    """Return a duration a person reads at a glance: `12 s`, `3 min 20 s`, `4 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(n_bytes: int) -> str:
    """Return a size a person reads at a glance: `37.8 GiB`, `3.3 MiB`."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _known(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _table(columns: Sequence[str], rows: Rows) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    return made


def _is_number(cell: object) -> bool:
    return not str(cell).strip() or str(cell).lstrip("+-~")[:1].isdigit()


def _render(made: Table) -> str:
    terminal = sys.stdout.isatty()
    console = Console(
        file=StringIO(),
        force_terminal=terminal,
        width=None if terminal else PLAIN_WIDTH,
        no_color=not terminal,
        highlight=False,
    )
    with console.capture() as captured:
        console.print(made)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def fit_text(fit: FitResult) -> str:
    """Return coefficients with intervals, then every remark, as text."""
    from analysis.summary import COEFFICIENT_COLUMNS, coefficient_rows, remarks

    return "\n".join([table(COEFFICIENT_COLUMNS, coefficient_rows(fit)), *remarks(fit)])


def fitted_text(fitted: Fitted, report: Path) -> str:
    """Return the runs, the law and the hold-outs held against it as text, and where the report is."""
    from analysis.summary import HOLD_OUT_COLUMNS, RUN_COLUMNS, hold_out_rows, run_rows

    parts = [table(RUN_COLUMNS, run_rows(fitted.runs))]
    if fitted.fit:
        parts.append(fit_text(fitted.fit))
        held = hold_out_rows(fitted.fit, fitted.runs)
        if held:
            parts.append(table(HOLD_OUT_COLUMNS, held))
    elif fitted.problem:
        parts.append(f"no fit: {fitted.problem}")
    if fitted.laws:
        from workflows.show_fits import comparison_text

        parts.append(comparison_text(fitted.laws))
    return "\n\n".join([*parts, f"report: {report}"])


def fitted_data(fitted: Fitted, report: Path) -> dict[str, Any]:
    """Return the same as JSON-able data, without the curves."""
    fit = fitted.fit
    return {
        "runs": [{k: v for k, v in asdict(run).items() if k != "curves"} for run in fitted.runs],
        "fit": fit.to_json() if fit else None,
        "problem": fitted.problem,
        "laws": [asdict(row) for row in fitted.laws],
        "holdout": [
            {
                "id": run.run_id,
                "predicted": fit.predict(N=run.N, D=run.D),
                "interval": fit.interval(N=run.N, D=run.D),
                "measured": run.loss,
                "error": fit.predict(N=run.N, D=run.D) / run.loss - 1,
                "constant_error": fit.mean_loss / run.loss - 1,
            }
            for run in fitted.runs
            if fit and run.held_out and run.loss
        ],
        "report": str(report),
    }


def result_text(study: Study, result: StudyResult) -> str:
    """Return what came of a study as text: the runs, the law, the hold-outs, and each failure with its log."""
    if result.fitted is None or result.report is None:
        return (
            status_text(study_status(study))
            + "\n\ninterrupted; the same command goes on with what is missing"
        )
    failures = [
        f"{failure.run_id} failed with code {failure.record.code}"
        + (f" on rank {failure.record.rank}" if failure.record.rank >= 0 else "")
        + f": {failure.record.cause}; see {failure.log}"
        for failure in result.failures
    ]
    return "\n".join(
        [fitted_text(result.fitted, result.report), *failures, f"took {duration(result.wall_s)}"]
    )


def result_data(study: Study, result: StudyResult) -> dict[str, Any]:
    """Return what came of a study as JSON-able data."""
    failures = [
        {"id": failure.run_id, **asdict(failure.record), "log": str(failure.log)}
        for failure in result.failures
    ]
    concluded = fitted_data(result.fitted, result.report) if result.fitted and result.report else {}
    return {
        "study": study.file.name,
        "interrupted": result.interrupted,
        "wall_s": result.wall_s,
        "failures": failures,
        **concluded,
    }
