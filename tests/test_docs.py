"""What the documents say is there is there."""

from __future__ import annotations

import re

import pytest
import typer

from tests.conftest import ROOT
from workflows.cli import app

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATH = re.compile(r"`((?:analysis|launch|mpi_ops|slurm|studies|tests|workflows|docs|benchmarks)/[\w./-]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
STEP = re.compile(r"^\d+\. \*\*`([\w/]+\.py)`\*\*: (.*(?:\n   .*)*)", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_and_link_in_a_document_exists(document):
    text = document.read_text()
    paths = [ROOT / found for found in PATH.findall(text) if "NAME" not in found]
    links = [document.parent / found for found in LINK.findall(text)]
    assert [str(path) for path in paths + links if not path.exists()] == []


def test_the_trace_takes_fewer_than_ten_files_and_names_what_is_in_them():
    steps = STEP.findall((ROOT / "docs" / "trace.md").read_text())
    assert 5 <= len(steps) < 10
    for file, sentence in steps:
        source = (ROOT / file).read_text()
        names = [name for name in re.findall(r"`(\w+)`", sentence) if re.search(r"[a-z]", name)]
        assert names, f"{file}: its step names nothing in it"
        absent = [name for name in names if not re.search(rf"\b{name}\b", source)]
        assert absent == [], f"{file} no longer has {absent}"


def test_the_readme_shows_commands_that_exist():
    verbs = set(re.findall(r"^isoflop (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    known = set(typer.main.get_command(app).commands)
    assert verbs == known, "every verb is in the README, and no other"


def test_the_makefile_has_the_readmes_targets():
    wanted = set(re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert wanted <= set(re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert "exec make test\n" in (ROOT / ".ci" / "run").read_text()
