"""Arguments that several verbs take, and what they stand for. Every import that costs is made by its verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from workflows.study import Study

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="a study file, or a study's directory")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key: base.model.width=64")
]
SiteName = Annotated[str | None, typer.Option("--site", help="run there instead of the study's own site")]
Queue = Annotated[str | None, typer.Option(help="a queue of the site; default: its first")]
Account = Annotated[
    str | None, typer.Option(help="project to charge; default: SBATCH_ACCOUNT, read by sbatch")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]


def study_at(path: Path, overrides: list[str] | None, site: str | None) -> Study:
    """Return the study in a file, or the one that a study's directory keeps."""
    from workflows.study import read_study

    if path.is_dir():
        return read_study(path / "study.yaml", [*(overrides or []), f"runs_dir={path.parent}"], site)
    return read_study(path, overrides, site)


def say(sentence: str) -> None:
    """Talk: a sentence to stderr."""
    print(sentence, file=sys.stderr, flush=True)


def emit(document: Any) -> None:
    """Data: text as it is and anything else as JSON, in which what is no number is null, to stdout."""
    if not isinstance(document, str):
        from analysis.finite import finite

        document = json.dumps(finite(document), indent=1, allow_nan=False)
    print(document)
