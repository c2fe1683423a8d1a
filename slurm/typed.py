"""From plain YAML data to nested frozen dataclasses, without pydantic: ranks and login nodes read sites, too."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from slurm.errors import SiteError
from slurm.strict_yaml import Document, KeyPath

Made = TypeVar("Made")
_SCALARS: dict[type, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float), bool: (bool,)}


def build(kind: type[Made], document: Document) -> Made:
    """Return the document as a `kind`, a frozen dataclass of scalars, tuples, mappings and such dataclasses.

    Raises:
        SiteError: an unknown or missing key, a wrong type or a negative number, with file, line and key.
    """
    made: Made = _section(kind, document.data, document, ())
    return made


def _section(kind: Any, data: Any, document: Document, path: KeyPath) -> Any:
    if not isinstance(data, dict):
        raise SiteError(f"{_place(document, path)}: {_name(path)} is a mapping of keys, this is {data!r}")
    hints = get_type_hints(kind)
    for key in data:
        if key not in hints:
            near = get_close_matches(key, hints, n=1) or sorted(hints)
            raise SiteError(
                f"{_place(document, (*path, key))}: unknown key '{_name((*path, key))}'; "
                f"did you mean {' or '.join(near)}?"
            )
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in data:
            raise SiteError(f"{_place(document, path)}: key '{_name((*path, field.name))}' is missing")
    values = {key: _value(hints[key], held, document, (*path, key)) for key, held in data.items()}
    try:
        return kind(**values)
    except ValueError as error:  # what the dataclass itself checks
        raise SiteError(f"{_place(document, path)}: {error}") from None


def _value(kind: Any, held: Any, document: Document, path: KeyPath) -> Any:
    if get_origin(kind) in (Union, types.UnionType):  # X | None
        kind = next(choice for choice in get_args(kind) if choice is not type(None))
    if is_dataclass(kind):
        return _section(kind, held, document, path)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(held, list):
        return tuple(_value(inner[0], item, document, (*path, index)) for index, item in enumerate(held))
    if origin is dict and isinstance(held, dict):
        return {key: _value(inner[1], item, document, (*path, key)) for key, item in held.items()}
    wanted = _SCALARS.get(kind, ())
    fits = isinstance(held, wanted) and (kind is bool or not isinstance(held, bool))
    if not fits or (isinstance(held, int | float) and held < 0):
        raise SiteError(f"{_place(document, path)}: {_name(path)} holds {held!r}, it takes {_words(kind)}")
    return held


def _words(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list"
    if get_origin(kind) is dict:
        return "a mapping of names to text"
    return {str: "text", bool: "true or false"}.get(kind, f"a non-negative {getattr(kind, '__name__', kind)}")


def _name(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "a site"


def _place(document: Document, path: KeyPath) -> str:
    line = document.line(path)
    return f"{document.source}:{line}" if line else document.source
