"""The one YAML loader: what a reader of the file sees is what the program gets, or an error with a line.

Stock YAML 1.1 reads `1e-3` as text, `012` as ten, `1:30` as ninety, `on` as true, and lets the second of two
equal keys win. Here numbers are those of YAML 1.2 and JSON, only `true` and `false` are booleans, a repeated
key is an error, and tags, anchors and aliases are refused: a study holds data, never objects.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
KeyPath = tuple[str | int, ...]

_SCALARS = (
    ("null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""]),
    ("bool", re.compile(r"^(?:true|false)$"), list("tf")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")),
    (
        "float",
        re.compile(r"^[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?$"),
        list("-+0123456789"),
    ),
)


class YamlError(Exception):
    """A YAML text that cannot be taken as it stands; the message names file, line and cause."""

    exit_code = 2


@dataclass(frozen=True)
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the line (from 1) on which each key stands."""

    data: Any
    lines: dict[KeyPath, int]
    source: str

    def line(self, path: KeyPath) -> int | None:
        """Return the line of the nearest enclosing key of `path` that stands in the file, None for none."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and none of its implicit dates, octals and sexagesimals."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own name)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node, refusing anchors and aliases: a few of them can stand for gigabytes."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(
                None, None, "anchors (&) and aliases (*) are refused, write the value out", event.start_mark
            )
        return super().compose_node(parent, index)


for _kind, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, _first)

_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


def load(path: Path) -> Document:
    """Return the document in the file `path`.

    Raises:
        YamlError: the file is missing, unreadable, over 1 MiB, not UTF-8, or not plain strict YAML.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise YamlError(f"{path}: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise YamlError(f"{path}: {len(raw)} bytes, a study or site file holds at most {MAX_BYTES}")
    try:
        return loads(raw.decode(), str(path))
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: byte {error.start} is not UTF-8") from None


def loads(text: str, source: str = "<text>") -> Document:
    """Return the document in `text`; `source` is the name used in errors. Raises YamlError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        data = None if node is None else _plain(loader, node, (), lines, source)
    except yaml.MarkedYAMLError as error:
        raise YamlError(_explain(error, text, source)) from None
    except yaml.YAMLError as error:
        raise YamlError(f"{source}: {error}") from None
    except RecursionError:
        raise YamlError(f"{source}: nested too deeply") from None
    finally:
        loader.dispose()
    return Document(data, lines, source)


def _plain(loader: _Loader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], source: str) -> Any:
    """Build plain data from a node; every node must be met once, so an alias cannot multiply anything."""
    here = node.start_mark.line + 1
    if node.tag not in _PLAIN_TAGS:
        raise YamlError(f"{source}:{here}: tag {node.tag} is refused: a study holds plain data only")
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > 300 and not node.tag.endswith(":str"):
            raise YamlError(f"{source}:{here}: a number of {len(node.value)} digits")
        value = loader.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            raise YamlError(f"{source}:{here}: {node.value} is too large for a number")
        return value
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            lines[(*path, index)] = child.start_mark.line + 1
            items.append(_plain(loader, child, (*path, index), lines, source))
        return items
    mapping: dict[str, Any] = {}
    for key_node, child in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str):
            raise YamlError(f"{source}:{line}: a key is a plain word")
        if key in mapping:
            first = lines[(*path, key)]
            raise YamlError(f"{source}:{line}: key '{key}' stands already on line {first}; keep one of them")
        lines[(*path, key)] = line
        mapping[key] = _plain(loader, child, (*path, key), lines, source)
    return mapping


def _explain(error: yaml.MarkedYAMLError, text: str, source: str) -> str:
    """Return one sentence for a syntax error, with the line it stands on."""
    mark = error.problem_mark or error.context_mark
    number = mark.line + 1 if mark else 1
    rows = text.splitlines()
    row = rows[number - 1] if number <= len(rows) else ""
    if "\t" in row:
        return f"{source}:{number}: a tab character; indent with spaces"
    problem = error.problem or "not valid YAML"
    return f"{source}:{number}: {problem}; the line reads {row.strip()!r}"


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would not read back as the same text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (PyYAML's own signature)
        """Write every value out, since `load` refuses aliases."""
        return True


def dumps(data: Any) -> str:
    """Return plain data as YAML that `loads` reads back equal."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=10**6)
    return text
