"""The tables of faults name tests that are there, and guards that were seen to matter to them."""

from __future__ import annotations

import re

from slurm.strict_yaml import load
from tests.conftest import ROOT

ROW = re.compile(r"^\| .+ \| .+ \| `(tests/[\w/]+\.py)::(test_\w+)` \| (.+) \|$", re.MULTILINE)
TEXT = (ROOT / "docs" / "faults.md").read_text()
GUARDS = {
    name: (part["file"], text, " ".join(part["tests"]))
    for part in load(ROOT / "tests" / "faults" / "guards.yaml").data
    for name, (text, _) in part["mutations"].items()
}


def test_every_row_of_the_tables_of_faults_is_a_test():
    rows = ROW.findall(TEXT)
    lines = TEXT.splitlines()
    assert len(rows) == sum(line.startswith("| ") for line in lines) - lines.count("|---|---|---|---|"), (
        "but for heads"
    )
    absent = [f"{path}::{name}" for path, name, _ in rows if f"def {name}(" not in (ROOT / path).read_text()]
    assert absent == []


def test_every_guard_stands_in_one_row_and_every_row_has_one_that_its_own_test_misses():
    rows = [(f"{path}::{name}", guards.split("; ")) for path, name, guards in ROW.findall(TEXT)]
    assert sorted(guard for _, guards in rows for guard in guards) == sorted(GUARDS)
    assert [test for test, guards in rows if not any(test in GUARDS[guard][2] for guard in guards)] == []


def test_every_guard_is_where_it_is_said_to_be():
    moved = [name for name, (file, text, _) in GUARDS.items() if (ROOT / file).read_text().count(text) != 1]
    assert moved == [], "where its text has changed, so must tests/faults/guards.yaml"
