"""What a reader of the file sees is what the program gets, or an error with a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.strict_yaml import YamlError, dumps, load, loads

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3e8", 3e8),
        ("-2.5E+3", -2500.0),
        ("012345", "012345"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        ("'3'", "3"),
        ("true", True),
        ("~", None),
        ("", None),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
    ],
)
def test_a_scalar_is_what_it_looks_like(text, value):
    held = loads(f"key: {text}\n").data["key"]
    assert held == value
    assert type(held) is type(value)


@given(PLAIN)
def test_what_is_written_reads_back_equal(value):
    assert loads(dumps({"key": value})).data == {"key": value}


def test_every_key_knows_its_line():
    document = loads("a: 1\nb:\n  c: 2\n  d: [x,\n      y]\n")
    assert document.line(("b", "c")) == 3
    assert document.line(("b", "d", 1)) == 5
    assert document.line(("b", "missing")) == 2
    assert document.line(("nowhere",)) is None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands already on line 1"),
        ("a:\n\tb: 1\n", 2, "tab"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", 2, "tag"),
        ("a: !anything 1\n", 1, "tag"),
        ("a: &x [1]\nb: *x\n", 1, "anchors"),
        ("a: [1, 2\n", 2, "expected"),
        ("a: 1\n? [b]\n: 2\n", 2, "plain word"),
        ("a: 1\n--- \nb: 2\n", 2, "document"),
        ("a: 1\nb: 1e999\n", 2, "too large"),
        ("a: " + "9" * 5000, 1, "digits"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_line(text, line, words):
    with pytest.raises(YamlError, match=words) as caught:
        loads(text, "study.yaml")
    assert str(caught.value).startswith(f"study.yaml:{line}:")


def test_deep_nesting_is_refused_not_a_crash():
    with pytest.raises(YamlError, match="deep"):
        loads("a: " + "[" * 5000)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(YamlError, match=r"missing.yaml: No such file"):
        load(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(YamlError, match="byte 3 is not UTF-8"):
        load(tmp_path / "latin.yaml")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(YamlError, match="at most"):
        load(tmp_path / "huge.yaml")
