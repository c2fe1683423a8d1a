"""From plain data to a frozen configuration: nothing coerced in silence, every mistake in a sentence with its place."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, model_validator

from workflows.config import Section, apply_overrides, leaves, parse, put
from workflows.errors import ConfigError


class Inner(Section):
    width: int = Field(default=8, ge=1)
    kind: Literal["a", "b"] = "a"


class Outer(Section):
    inner: Inner = Inner()
    rate: float = 0.5
    names: list[str] = Field(default=[])
    on: bool = False

    @model_validator(mode="after")
    def _rate_fits(self):
        if self.rate > 1:
            raise ValueError(f"rate={self.rate}: at most 1")
        return self


def where(path) -> str:
    return "f.yaml: " + ".".join(map(str, path))


def test_a_whole_float_is_a_count_and_a_count_is_a_float():
    held = parse(Outer, {"inner": {"width": 3e8}, "rate": 1}, where)
    assert held.inner.width == 300_000_000
    assert held.rate == 1.0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"inner": {"widht": 3}}, "f.yaml: inner.widht: unknown key; did you mean 'width'?"),
        ({"zzz": 3}, "f.yaml: zzz: unknown key; allowed: inner, names, on, rate"),
        ({"inner": {"width": 1.5}}, "f.yaml: inner.width: holds 1.5, allowed is"),
        ({"inner": {"width": "3"}}, 'f.yaml: inner.width: holds "3", allowed is a valid integer'),
        ({"inner": {"width": True}}, "f.yaml: inner.width: holds true, allowed is a valid integer"),
        ({"inner": {"width": 0}}, "f.yaml: inner.width: holds 0, allowed is greater than or equal to 1"),
        ({"inner": {"kind": "c"}}, "f.yaml: inner.kind: holds \"c\", allowed is 'a' or 'b'"),
        ({"inner": 3}, "f.yaml: inner: holds 3, allowed is an object"),
        ({"names": [1]}, "f.yaml: names.0: holds 1, allowed is a valid string"),
        ({"on": "true"}, 'f.yaml: on: holds "true", allowed is a valid boolean'),
        ({"rate": 2}, "f.yaml: : rate=2.0: at most 1"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(data, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(Outer, data, where)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_every_mistake_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"inner": {"width": 0}, "rat": 1}, where)
    assert len(str(caught.value).splitlines()) == 2


def test_overrides_are_yaml_values_and_leave_the_data_alone():
    data = {"a": {"b": 1}, "items": [{"c": 1}]}
    changed = apply_overrides(data, ["a.b=3e8", "a.new.deep=x", "items.0.c=[1, 2]", "t=a=b"])
    assert changed == {"a": {"b": 3e8, "new": {"deep": "x"}}, "items": [{"c": [1, 2]}], "t": "a=b"}
    assert data == {"a": {"b": 1}, "items": [{"c": 1}]}


@pytest.mark.parametrize(
    "override", ["a.b", "=3", "a.b.c=1", "items.x=1", "items.7.c=1", "a.b=[1", "a=!!python/none x"]
)
def test_an_override_that_leads_nowhere_is_refused(override):
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"a": {"b": 1}, "items": [{"c": 1}]}, [override])


def test_put_shares_nothing_it_changes():
    data = {"a": {"b": 1, "c": 2}}
    assert put(data, ("a", "b"), 9) == {"a": {"b": 9, "c": 2}}
    assert put(data, ("x", "y"), 1) == {"a": {"b": 1, "c": 2}, "x": {"y": 1}}
    assert data == {"a": {"b": 1, "c": 2}}


def test_a_dotted_key_and_nested_keys_are_one_path():
    assert list(leaves({"a.b": 1, "c": {"d": {"e": [2]}, "f": {}}})) == [
        (("a", "b"), 1),
        (("c", "d", "e"), [2]),
        (("c", "f"), {}),
    ]
