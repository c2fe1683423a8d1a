"""How far a study is, read from the files of its runs alone: any shell may ask while a driver works."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import StoreError
from analysis.store import read_last
from launch.rundir import RunDir, State
from workflows.study import Run, Study


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run as its files show it now. A value that is not known yet is None."""

    run_id: str
    held_out: bool
    state: State
    attempts: int
    step: int | None
    tokens: int | None
    d_tokens: int
    loss: float | None
    tokens_per_s: float | None
    peak_share: float | None
    """FLOP rate over that of the fastest matrix product."""
    measuring_error: bool
    """The FLOP rate was higher than that, so it was measured wrong and left out."""
    left_s: float | None
    heard_s: float | None
    """Unix time of the last sign of life: the newest of what the last attempt has written."""
    cause: str
    log: Path | None


def study_status(study: Study) -> list[RunStatus]:
    """Return the status of every run, in the study's order."""
    return [run_status(study.run_dir(run), run, study.workflow.progress) for run in study.runs]


def run_status(directory: RunDir, run: Run, progress: str) -> RunStatus:
    """Return the status of one run: state from its records, figures from its last attempt's metrics.

    `progress` is the stream that says how far it is; where that is the training loss, it is shown as well.
    """
    state = directory.state()
    attempts = directory.attempts() if directory.path.is_dir() else []
    last = attempts[-1] if attempts else 0
    step = tokens = loss = rate = share = left_s = None
    wrong = False
    try:
        rows = (
            read_last(directory.attempt(last, "h5"), progress, "tokens_per_s", "peak_share") if last else {}
        )
    except StoreError:
        rows = {}  # not made yet, or damaged: the report says which
    if progress in rows:
        row = rows[progress]
        step, tokens = int(row["step"]), int(row["tokens"])
        loss = float(row["value"]) if progress == "train_loss" else None
    if "tokens_per_s" in rows:
        rate = float(rows["tokens_per_s"]["value"])
        left_s = (run.size.d_tokens - (tokens or 0)) / rate if state == "running" and rate else None
    if "peak_share" in rows:
        share = float(rows["peak_share"]["value"])
        share, wrong = (None, True) if math.isnan(share) else (share, False)
    return RunStatus(
        run.id,
        run.held_out,
        state,
        len(attempts),
        step,
        tokens,
        run.size.d_tokens,
        loss,
        rate,
        share,
        wrong,
        left_s,
        _heard_s(directory, last) if last else None,
        _cause(directory, attempts),
        directory.attempt(last, "err") if last else None,
    )


def _cause(directory: RunDir, attempts: list[int]) -> str:
    """Return why the last attempt ended; while it goes on, why the one before did; empty when that was a success."""
    for number in attempts[:-3:-1]:
        if record := directory.exit_record(number):
            before = f"attempt {number}: " if number != attempts[-1] else ""
            return before + record.cause if record.code else ""
    return ""


def _heard_s(directory: RunDir, attempt: int) -> float | None:
    """Return when an attempt last wrote something."""
    files = [directory.attempt(attempt, suffix) for suffix in ("h5", "out", "err", "exit.json")]
    return max((path.stat().st_mtime for path in files if path.exists()), default=None)


def one_line(statuses: list[RunStatus]) -> str:
    """Return the study's state as one line for a log: the clock, counts by state, and what runs."""
    counts = Counter(status.state for status in statuses)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    running = [
        f"{s.run_id} {100 * (s.tokens or 0) / s.d_tokens:.0f} %" + (f" loss {s.loss:.3f}" if s.loss else "")
        for s in statuses
        if s.state == "running"
    ]
    return f"{time.strftime('%H:%M:%S')}  {summary}" + (f"  |  {'; '.join(running)}" if running else "")
