"""The command `isoflop`. Data goes to stdout, talk to stderr; every import that costs is made by its verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflows.fit_verbs import verbs

if TYPE_CHECKING:
    from launch.rundir import RunDir
    from workflows.batch import Wishes
    from workflows.study import Study

app = typer.Typer(
    help="From a study file to a fitted scaling law.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(verbs)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="a study file, or a study's directory")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key: base.model.width=64")
]
SiteName = Annotated[str | None, typer.Option("--site", help="run there instead of the study's own site")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="a run's id, or its directory")]
RunsDir = Annotated[Path, typer.Option(help="where studies are kept")]
OneRun = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="which run, where a study has several")
]
Walltime = Annotated[str | None, typer.Option(help="H:MM:SS; default: the longest for so many nodes")]
Queue = Annotated[str | None, typer.Option(help="a queue of the site; default: its first")]
Account = Annotated[
    str | None, typer.Option(help="project to charge; default: SBATCH_ACCOUNT, read by sbatch")
]
Restarts = Annotated[int, typer.Option(min=0, help="requeues in a row without a new checkpoint")]
Archive = Annotated[
    Path | None, typer.Option(help="packed environment (.tar, .tar.gz) to unpack on every node's own disk")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]


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

    expanded = _study(study, overrides, site)
    _print(show.plan_data(expanded) if as_json else show.plan_text(expanded))


@app.command()
def run(study: StudyPath, overrides: Overrides = None, site: SiteName = None, as_json: Json = False) -> None:
    """Run what is missing of a study, fit the law and write the report."""
    from workflows import show
    from workflows.dag import run_study

    expanded = _study(study, overrides, site)
    with show.watching(expanded) as (tick, say):
        result = run_study(expanded, tick, say)
    _print(show.result_data(expanded, result) if as_json else show.result_text(expanded, result))
    raise typer.Exit(show.exit_code(result))


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
    _print(script(_study(study, overrides, site), run_id, wishes).removesuffix("\n"))


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

    expanded = _study(study, overrides, site)
    wishes = _wishes(walltime, queue, account, restarts, archive)
    job = batch.submit(expanded, run_id, wishes, Client(), _say)
    _print({"job": job.job_id, "name": job.name} if as_json else job.job_id)
    if wait:
        raise typer.Exit(batch.follow(expanded, run_id, job, Client(), _say))


@app.command()
def status(study: StudyPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show how far each run of a study is, from the files of the runs alone."""
    from workflows import show
    from workflows.progress import study_status

    statuses = study_status(_study(study, overrides, None))
    _print(show.status_data(statuses) if as_json else show.status_text(statuses))


@app.command()
def logs(
    run_id: RunId,
    runs_dir: RunsDir = Path("runs"),
    attempt: Annotated[int | None, typer.Option(help="default: the last one")] = None,
) -> None:
    """Print what a run wrote to its output, then to its error stream."""
    from workflows.errors import ConfigError

    directory = _run_dir("logs", run_id, runs_dir)
    number = attempt or max(directory.attempts(), default=0)
    if number not in directory.attempts():
        raise ConfigError(f"logs: {directory.path} has no attempt {number}; it has {directory.attempts()}")
    for suffix in ("out", "err"):
        log = directory.attempt(number, suffix)
        if log.exists():
            sys.stdout.write(log.read_text(errors="replace"))


@app.command()
def report(study: StudyPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fit what has finished of a study and write its report anew."""
    from workflows import show
    from workflows.conclude import fit_study, report_study

    expanded = _study(study, overrides, None)
    fitted = fit_study(expanded)
    path = report_study(expanded, fitted)
    _print(show.fitted_data(fitted, path) if as_json else show.fitted_text(fitted, path))


@app.command()
def export(
    run_id: RunId,
    out: Annotated[Path, typer.Option(help="a directory for the files")],
    format_: Annotated[str, typer.Option("--format", help="safetensors")] = "safetensors",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a run's weights and tokenizer for other programs: a Hugging Face Llama as safetensors."""
    from workflows.errors import ConfigError
    from workflows.llm.export import export_run

    if format_ != "safetensors":
        raise ConfigError(f"export: --format {format_}; there is safetensors")
    for path in export_run(_run_dir("export", run_id, runs_dir), out, _say):
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
    _print(
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
    _print(
        [dict(zip(("name", "description"), row, strict=True)) for row in rows]
        if as_json
        else show.lines(rows)
    )


def _study(path: Path, overrides: list[str] | None, site: str | None) -> Study:
    """Return the study in a file, or the one that a study's directory keeps."""
    from workflows.study import read_study

    if path.is_dir():
        return read_study(path / "study.yaml", [*(overrides or []), f"runs_dir={path.parent}"], site)
    return read_study(path, overrides, site)


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


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _print(document: Any) -> None:
    """Print text as it is and anything else as JSON, to stdout."""
    print(document if isinstance(document, str) else json.dumps(document, indent=1))
