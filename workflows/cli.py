"""The command `isoflop`. Data goes to stdout, talk to stderr; every import that costs is made by its verb."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows import fit_verbs, study_verbs
from workflows.arguments import Account, Json, Overrides, Queue, SiteName, StudyPath, emit, say, study_at

if TYPE_CHECKING:
    from launch.rundir import RunDir
    from workflows.batch import Wishes

app = typer.Typer(
    help="From a study file to a fitted scaling law.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(study_verbs.verbs)
app.add_typer(fit_verbs.verbs)

TAIL_LINES = 100
"""Of one rank, where it is asked for."""
RunId = Annotated[str, typer.Argument(metavar="RUN", help="a run's id, or its directory")]
RunsDir = Annotated[Path, typer.Option(help="where studies are kept")]
OneRun = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="which run, where a study has several")
]
Walltime = Annotated[str | None, typer.Option(help="H:MM:SS; default: the longest for so many nodes")]
Restarts = Annotated[int, typer.Option(min=0, help="requeues in a row without a new checkpoint")]
Archive = Annotated[
    Path | None, typer.Option(help="packed environment (.tar, .tar.gz) to unpack on every node's own disk")
]


def main() -> None:
    """Run the command; a mistake of the user's ends in one sentence on stderr and the contract's exit code."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"isoflop: {error}", file=sys.stderr)
        sys.exit(code)


@app.command()
def plan(study: StudyPath, overrides: Overrides = None, site: SiteName = None, as_json: Json = False) -> None:
    """Show the runs a study stands for, their size and the time they may take. Touches nothing."""
    from workflows import show

    expanded = study_at(study, overrides, site)
    emit(show.plan_data(expanded) if as_json else show.plan_text(expanded))


@app.command()
def render(
    study: StudyPath,
    run_id: OneRun = None,
    overrides: Overrides = None,
    site: SiteName = None,
    walltime: Walltime = None,
    queue: Queue = None,
    account: Account = None,
    restarts: Restarts = 3,
    archive: Archive = None,
    portable: Annotated[bool, typer.Option(help="paths start from where sbatch is called")] = False,
) -> None:
    """Print the batch script of one run, ready for sbatch. Touches nothing."""
    from workflows.batch import script

    wishes = _wishes(walltime, queue, account, restarts, archive, portable)
    emit(script(study_at(study, overrides, site), run_id, wishes).removesuffix("\n"))


@app.command()
def submit(
    study: StudyPath,
    run_id: OneRun = None,
    overrides: Overrides = None,
    site: SiteName = None,
    walltime: Walltime = None,
    queue: Queue = None,
    account: Account = None,
    restarts: Restarts = 3,
    archive: Archive = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="until the job has ended, and end with its code")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check one run, send its batch script to the scheduler and print the job's number."""
    from slurm.client import Client
    from workflows import batch

    expanded = study_at(study, overrides, site)
    wishes = _wishes(walltime, queue, account, restarts, archive)
    job = batch.submit(expanded, run_id, wishes, Client(), say)
    emit({"job": job.job_id, "name": job.name} if as_json else job.job_id)
    if wait:
        raise typer.Exit(batch.follow(expanded, run_id, job, Client(), say))


@app.command()
def logs(
    run_id: RunId,
    runs_dir: RunsDir = Path("runs"),
    attempt: Annotated[int | None, typer.Option(help="default: the last one")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="only the last lines that name this rank")] = None,
    as_json: Json = False,
) -> None:
    """Print what a run wrote to its output, then to its error stream."""
    from workflows.errors import ConfigError

    directory = _run_dir("logs", run_id, runs_dir)
    number = attempt or max(directory.attempts(), default=0)
    if number not in directory.attempts():
        raise ConfigError(f"logs: {directory.path} has no attempt {number}; it has {directory.attempts()}")
    texts = {}
    for suffix in ("out", "err"):
        log = directory.attempt(number, suffix)
        text = log.read_text(errors="replace") if log.exists() else ""
        texts[suffix] = text if rank is None else _of_rank(text, rank)
    if rank is not None and not any(texts.values()):
        say(
            f"no line of attempt {number} says that it is of rank {rank}; without --rank all of them are printed"
        )
    if as_json:
        emit({"run": directory.path.name, "attempt": number, "rank": rank, **texts})
    else:
        sys.stdout.write("".join(texts.values()))


@app.command()
def report(study: StudyPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fit what has finished of a study and write its report anew."""
    from workflows import show
    from workflows.conclude import fit_study, report_study

    expanded = study_at(study, overrides, None)
    fitted = fit_study(expanded)
    path = report_study(expanded, fitted)
    emit(show.fitted_data(fitted, path) if as_json else show.fitted_text(fitted, path))


@app.command()
def export(
    what: Annotated[str, typer.Argument(metavar="RUN|STUDY", help="a run's id or directory, or a study")],
    out: Annotated[Path, typer.Option(help="a new directory for the files")],
    to: Annotated[
        str, typer.Option(help="safetensors: weights; csv, mlflow, tensorboard, wandb: metrics")
    ] = "safetensors",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a run's weights, or the metrics of a run or of all runs of a study, for other programs."""
    from analysis.exports import names
    from workflows.errors import ConfigError
    from workflows.exports import run_dirs, write_metrics

    if to not in (kinds := ["safetensors", *names()]):
        raise ConfigError(f"export: --to {to}; there is {', '.join(kinds)}")
    if to == "safetensors":
        from workflows.llm.export import export_run

        written = export_run(_run_dir("export", what, runs_dir), out, say)
    else:
        runs = run_dirs(Path(what)) or [_run_dir("export", what, runs_dir)]
        written = write_metrics(runs, to, out, say)
    for path in written:
        print(path)


@app.command()
def doctor(
    site: Annotated[str, typer.Option("--site", help="as what to look at this machine")] = "local",
    runs_dir: Annotated[Path, typer.Option(help="where studies are to be kept")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Look for what is likely to spoil a run on this machine, and end with 3 when something is wrong."""
    from dataclasses import asdict

    from launch.rundir import make_private
    from slurm.site import load_site
    from workflows.doctor import examine

    findings = examine(load_site(site), make_private(runs_dir))
    from workflows import show  # only now: a foreign package of one of our names would end it

    rows = [(finding.check, finding.verdict, finding.sentence) for finding in findings]
    emit(
        [asdict(f) for f in findings] if as_json else show.table(("check", "verdict", "what was found"), rows)
    )
    raise typer.Exit(3 if any(finding.verdict == "wrong" for finding in findings) else 0)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="sites|laws|workflows")], as_json: Json = False
) -> None:
    """List the sites, laws or kinds of run that are known here."""
    from workflows import show

    rows = show.listing(what)
    emit(
        [dict(zip(("name", "description"), row, strict=True)) for row in rows]
        if as_json
        else show.lines(rows)
    )


def _of_rank(text: str, rank: int) -> str:
    """Return the last lines of a log that begin with a rank's name, as tracebacks, stacks and sentences of ranks do."""
    named = re.compile(rf"(rank {rank}|\[rank{rank}\]):")
    return "".join([line for line in text.splitlines(keepends=True) if named.match(line)][-TAIL_LINES:])


def _wishes(
    walltime: str | None,
    queue: str | None,
    account: str | None,
    restarts: int,
    archive: Path | None,
    portable: bool = False,
) -> Wishes:
    """Return what the command line says about a job; a relative archive is one of this directory."""
    from workflows.batch import Wishes

    absolute = Path.cwd() / archive if archive and not portable else archive
    return Wishes(walltime, queue, account, restarts, absolute, portable)


def _run_dir(verb: str, run_id: str, runs_dir: Path) -> RunDir:
    """Return the directory of the run that is named, or the one at that path."""
    from launch.rundir import RunDir
    from workflows.errors import ConfigError

    places = (Path(run_id), *sorted(runs_dir.glob(f"*/{Path(run_id).name}")))
    found = [path for path in places if path.is_dir()]
    if not found:
        raise ConfigError(
            f"{verb}: no run '{run_id}' in {runs_dir}/*/; `isoflop status STUDY` lists the runs"
        )
    return RunDir(found[0])
