"""The table of faults names tests that are there."""

from __future__ import annotations

import re

from tests.conftest import ROOT

ROW = re.compile(r"^\| .+ \| .+ \| `(tests/[\w/]+\.py)::(test_\w+)` \|$", re.MULTILINE)


def test_every_row_of_the_table_of_faults_is_a_test():
    text = (ROOT / "docs" / "faults.md").read_text()
    rows = ROW.findall(text)
    assert len(rows) == sum(line.startswith("| ") for line in text.splitlines()) - 1, "but for the head"
    absent = [f"{path}::{name}" for path, name in rows if f"def {name}(" not in (ROOT / path).read_text()]
    assert absent == []
