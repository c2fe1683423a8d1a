"""The list of mutations keeps up with the code. That tests notice them is seen by running it, which takes two hours."""

from __future__ import annotations

from tests.mutations import mutations


def test_every_mutation_can_be_made():
    """Each text to replace stands once in its file, and what is left is Python: else it says which and exits."""
    found = mutations()
    assert found
    assert len({(each.file, each.name) for each in found}) == len(found)
