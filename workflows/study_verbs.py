"""The verbs of a study at work: run, resume, retry, status, cancel. Every import that costs is made by its verb."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.arguments import Account, Json, Overrides, Queue, SiteName, StudyPath, emit, say, study_at

if TYPE_CHECKING:
    from launch.rundir import State
    from workflows.study import Study

verbs = typer.Typer()
WATCH_S = 5.0
UNFINISHED: tuple[State, ...] = ("pending", "running", "requeue", "interrupted")


@verbs.command()
def run(
    study: StudyPath,
    overrides: Overrides = None,
    site: SiteName = None,
    account: Account = None,
    queue: Queue = None,
    in_job: Annotated[
        bool, typer.Option("--in-job", help="print a batch script that runs it all in one allocation")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run what is missing of a study, fit the law and write the report."""
    expanded = study_at(study, overrides, site)
    if in_job:
        from workflows.pilots import study_script

        script = study_script(expanded, study, overrides or [], account, queue)
        emit(script.removesuffix("\n"))
        return
    _run(expanded, (*UNFINISHED, "failed"), account, queue, as_json)


@verbs.command()
def resume(study: StudyPath, account: Account = None, queue: Queue = None, as_json: Json = False) -> None:
    """Go on with a study that was cancelled or interrupted; runs that failed stay failed."""
    _run(study_at(study, None, None), UNFINISHED, account, queue, as_json)


@verbs.command()
def retry(
    study: StudyPath,
    failed: Annotated[bool, typer.Option("--failed", help="the runs that failed")] = False,
    account: Account = None,
    queue: Queue = None,
    as_json: Json = False,
) -> None:
    """Start the failed runs of a study again, from their last checkpoints."""
    from workflows.errors import ConfigError

    if not failed:
        raise ConfigError("retry: say which runs, with --failed; `isoflop resume` goes on with the others")
    _run(study_at(study, None, None), ("failed",), account, queue, as_json)


@verbs.command()
def status(
    study: StudyPath,
    overrides: Overrides = None,
    site: SiteName = None,
    watch: Annotated[bool, typer.Option("--watch", help="again and again, until Ctrl-C or the end")] = False,
    as_json: Json = False,
) -> None:
    """Show how far each run of a study is, from the files of the runs, and what its jobs wait for."""
    from workflows import show
    from workflows.jobs import Watch
    from workflows.progress import study_status

    expanded = study_at(study, overrides, site)
    jobs = Watch(expanded)
    while True:
        statuses = study_status(expanded)
        sentences = jobs.tick(statuses)
        emit(show.status_data(statuses) if as_json else show.status_text(statuses, sentences))
        if not watch or not jobs.goes_on(statuses):
            return
        time.sleep(WATCH_S)


@verbs.command()
def cancel(study: StudyPath, overrides: Overrides = None) -> None:
    """End a study: its driver, its allocations and its jobs. What is committed stays; `isoflop resume` goes on."""
    from workflows.jobs import cancel_study

    for sentence in cancel_study(study_at(study, overrides, None), say):
        emit(sentence)


def _run(
    study: Study, states: tuple[State, ...], account: str | None, queue: str | None, as_json: bool
) -> None:
    """Bring the runs in these states to their end, print what came of the study and end with its code."""
    from workflows import show
    from workflows.dag import Asks, run_study

    with show.watching(study) as (tick, talk):
        result = run_study(study, tick, talk, Asks(account, queue, states))
    emit(show.result_data(study, result) if as_json else show.result_text(study, result))
    raise typer.Exit(show.exit_code(result))
