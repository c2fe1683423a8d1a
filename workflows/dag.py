"""A study as Parsl's graph of apps: every run, then the fit, then the report.

The outcome of a run is what its directory says. What Parsl hears is that an app returned.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parsl

from launch.attempt import INTERRUPTED
from launch.bootstrap import REQUEUE
from launch.errors import LaunchError
from launch.rundir import ExitRecord, State, locked, make_private, write_private
from slurm.strict_yaml import dumps
from workflows.conclude import Fitted, fit_study, report_study
from workflows.parsl_pilots import Pilots, pilots
from workflows.parsl_sites import DRIVER, Here, here
from workflows.study import LOCK, STOP, Run, Study

TICK_S = 0.5
HOPELESS = (2, 3, 5)
"""Exit codes that another attempt would only repeat: a wrong config, a refusal, a damaged file."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not finish: how its last attempt ended and where to read more."""

    run_id: str
    record: ExitRecord
    log: Path


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What came of a study. `fitted` and `report` are None when it was interrupted."""

    failures: list[Failure]
    interrupted: bool
    fitted: Fitted | None
    report: Path | None
    wall_s: float
    warned: bool = False
    """Whether it was the scheduler's warning that interrupted it: the study goes on when its job does."""


@dataclass(frozen=True, slots=True)
class Asks:
    """What the command line may say about the nodes of a study, and about which of its runs are meant."""

    account: str | None = None
    queue: str | None = None
    states: tuple[State, ...] = ("pending", "running", "failed", "requeue", "interrupted")
    """Runs in these states are brought to their end."""


def run_study(
    study: Study,
    tick: Callable[[], None],
    say: Callable[[str], None],
    asks: Asks = Asks(),
) -> StudyResult:
    """Run what is missing of a study to its end, then fit and report, and return what came of it.

    `tick` is called twice a second while runs go on, `say` with a sentence worth a line in a log.
    A run that stands finished in its directory is not started. On Ctrl-C or TERM the running ranks are ended
    in order and everything committed so far stays.

    Raises:
        RunBusyError: another driver works on this study.
        LaunchError: the study's directory cannot be written.
        The workflow's own error when the data that the runs share cannot be prepared.
    """
    started_s = time.monotonic()
    make_private(study.directory)
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since_s": time.time()}
    with locked(study.directory / LOCK, f"study '{study.file.name}'", note):
        write_private(study.directory / "study.yaml", dumps(study.resolved))
        for run in study.runs:
            _write_run(study, run)
        for sentence in dict.fromkeys(
            study.workflow.prepare(run.config, study.cache_dir.resolve()) for run in study.runs
        ):
            say(sentence)
        (study.directory / STOP).unlink(missing_ok=True)
        stop = Stop()
        with _signals_set(stop), _place(study, say, asks) as (kernel, place):
            runs, fit, report = _submit(study, stop, say, kernel, place, asks)
            stopping = False
            while not report.done():
                tick()
                if (study.directory / STOP).exists():
                    stop.set()
                if not stop.is_set():
                    place.tick()
                elif not stopping:
                    stopping = True
                    place.stop()
                time.sleep(TICK_S)
            failures = [failure for future in runs if (failure := future.result())]
            fitted = fit.result()
            interrupted = stop.is_set() and fitted is None  # too late a Ctrl-C interrupts nothing
            wall_s = time.monotonic() - started_s
            result = StudyResult(failures, interrupted, fitted, report.result(), wall_s, stop.warned)
    return result


class Stop(threading.Event):
    """Set when the study is to stop; `warned` when the scheduler's warning set it."""

    warned = False


def _place(
    study: Study, say: Callable[[str], None], asks: Asks
) -> AbstractContextManager[tuple[Any, Here | Pilots]]:
    """Return where attempts run: allocations to ask for, or here, which may be within one."""
    if study.site.scheduler is None or "SLURM_JOB_ID" in os.environ:
        return here(study)
    return pilots(study, say, asks.account, asks.queue)


def _submit(
    study: Study, stop: Stop, say: Callable[[str], None], kernel: Any, place: Here | Pilots, asks: Asks
) -> tuple[list[Future[Failure | None]], Future[Fitted | None], Future[Path | None]]:
    """Hand the graph to Parsl and return its futures."""
    app = parsl.python_app(data_flow_kernel=kernel, executors=[DRIVER])

    def finish(run: Run) -> Failure | None:
        return finish_run(study, run, place, stop, say)

    def fit(inputs: list[Any]) -> Fitted | None:  # noqa: ARG001  (what Parsl waits for)
        return None if stop.is_set() else fit_study(study)

    def report(fitted: Fitted | None) -> Path | None:
        return report_study(study, fitted) if fitted else None

    # Runs that outlived an earlier driver fill cores already; after them the longest goes first, so that
    # no single long run is left at the end.
    order = sorted(
        study.runs, key=lambda run: (study.run_dir(run).state() != "running", -run.estimated_s(study.site))
    )
    meant = [run for run in order if study.run_dir(run).state() in asks.states]
    place.expect(meant)
    runs = [app(finish)(run) for run in meant]
    fitted = app(fit)(inputs=runs)
    return runs, fitted, app(report)(fitted)


def finish_run(
    study: Study, run: Run, place: Here | Pilots, stop: threading.Event, say: Callable[[str], None]
) -> Failure | None:
    """Bring one run to its end, starting it again as often as its resources allow; None when that went well."""
    directory = study.run_dir(run)
    failed, reached = 0, -1
    with place.room(run):
        while directory.state() != "done" and not stop.is_set():
            try:
                record = place.attempt(run, directory, stop)
            except LaunchError as error:
                record = ExitRecord(error.exit_code, str(error), -1, -1, time.time(), time.time())
            if record.code in (0, INTERRUPTED) or (record.code == REQUEUE and stop.is_set()):
                continue  # in the last case the next driver goes on from what the ranks have committed
            failed += not (record.code == REQUEUE and record.step > reached)
            reached = max(reached, record.step)
            final = failed > run.resources.retries or record.code in HOPELESS
            say(f"{run.id}: {record.cause}" + ("" if final else "; starting it again"))
            if final:
                return Failure(run.id, record, directory.attempt(max(directory.attempts(), default=1), "err"))
    return None


def _write_run(study: Study, run: Run) -> None:
    """Write the exact configuration of a run into its directory, unless ranks have it in use or are done with it."""
    directory = study.run_dir(run)
    make_private(directory.path)
    if directory.state() not in ("running", "done"):
        write_private(directory.config, study.run_yaml(run, study.cache_dir.resolve()))


@contextmanager
def _signals_set(stop: Stop) -> Iterator[None]:
    """Let INT, TERM and the scheduler's warning set `stop` for the time of the body; a second one acts as usual."""

    def ask(number: int, _frame: object) -> None:
        stop.warned |= number == signal.SIGUSR1
        stop.set()
        signal.signal(number, previous[signal.Signals(number)])

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
