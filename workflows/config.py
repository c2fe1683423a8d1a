"""From plain YAML data to a frozen configuration, or a sentence with file, line, key, value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from slurm.strict_yaml import KeyPath, YamlError, loads
from workflows.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Where = Callable[[KeyPath], str]
"""Names the place a key path comes from, such as `study.yaml:12: base.train.tokens`."""


class Section(BaseModel):
    """A frozen part of a configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def parse(model: type[Model], data: Any, where: Where) -> Model:
    """Return `data` as a `model`. Nothing is coerced but a whole number written as a float (`3e8`).

    Raises:
        ConfigError: one sentence for each mistake, each with its place.
    """
    try:
        return model.model_validate_json(json.dumps(_whole(data)), strict=True)
    except ValidationError as error:
        sentences = [_sentence(model, detail, where) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(sentences))) from None


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of `data` with each `a.b=c` set; values are read as YAML, `a.0.b` counts into a list.

    Raises:
        ConfigError: an override without `=`, with an unreadable value, or through something that has no keys.
    """
    changed: dict[str, Any] = json.loads(json.dumps(data))
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {override}: write it as key.path=value")
        try:
            value = loads(text, f"--set {path}").data
            _put(changed, path.split("."), value)
        except YamlError as error:
            raise ConfigError(str(error)) from None
        except (TypeError, ValueError, IndexError):
            raise ConfigError(f"--set {override}: '{path}' does not lead to a key of this study") from None
    return changed


def put(data: dict[str, Any], path: KeyPath, value: Any) -> dict[str, Any]:
    """Return `data` with `value` at `path`; `data` itself and what it holds stay unchanged.

    Raises:
        TypeError: the path leads through something that has no keys.
    """
    key, *rest = path
    inner = data.get(str(key)) or {}
    if rest and not isinstance(inner, dict):
        raise TypeError(f"'{key}' holds {inner!r}, which has no keys")
    return {**data, str(key): put(inner, tuple(rest), value) if rest else value}


def leaves(data: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield (key path, value) of every leaf; a dotted key counts as a path, a list is a leaf."""
    for key, value in data.items():
        here = (*path, *key.split("."))
        if isinstance(value, dict) and value:
            yield from leaves(value, here)
        else:
            yield here, value


def _put(node: Any, keys: list[str], value: Any) -> None:
    """Set `value` in nested dicts and lists in place, making the dicts that are missing."""
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        if not isinstance(node, dict | list):
            raise TypeError
        place: Any = int(key) if isinstance(node, list) else key
        if following is None:
            node[place] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[place]


def _whole(data: Any) -> Any:
    """Turn every whole float into an int: `3e8` tokens are a count, and a float field takes an int."""
    if isinstance(data, dict):
        return {key: _whole(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_whole(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() and abs(data) < 2**63 else data


def _sentence(model: type[BaseModel], detail: ErrorDetails, where: Where) -> str:
    """Return one mistake as a sentence."""
    path, place = detail["loc"], where(detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        near = get_close_matches(str(path[-1]), known, n=1)
        return f"{place}: unknown key; " + (
            f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(known)}"
        )
    if detail["type"] == "missing":
        return f"{place}: this key is missing"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":  # the sentence of a validator, which names what it held
        return f"{place}: {message}"
    return f"{place}: holds {json.dumps(detail['input'])}, allowed is {message}"


def _keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys that the model at `path` below `model` has."""
    for key in path:
        field = model.model_fields.get(str(key))
        nested = [field.annotation, *get_args(field.annotation)] if field else []
        models = [kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return sorted(model.model_fields)
