"""Observations for a law, from a text table or from arrays: inputs, an outcome, and what was left out."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.errors import DataError
from analysis.sources import JSON_LINES, Rows, event_rows, is_events, is_metrics, json_rows, metrics_rows

Floats = NDArray[np.float64]
SIX_ND = "C = 6 N D"


@dataclass(frozen=True, slots=True)
class Observations:
    """Points that a law is fitted to, one a run; `labels` name them in messages and plots."""

    x: Mapping[str, Floats]
    """Inputs by symbol: N parameters, D tokens, C FLOPs, p ranks, ..."""
    y: Floats
    """The outcome, such as the final loss in nat/token."""
    labels: tuple[str, ...]
    source: str
    outcome: str = "L"
    flops_convention: str = SIX_ND
    size_convention: str = "as given"
    data_convention: str = "tokens"
    """What D counts."""
    exclusions: tuple[str, ...] = ()
    """What was left out, a sentence each."""
    left_out: Observations | None = None
    """The points among them that are known."""
    runs: tuple[str, ...] = ()
    """The run of each point where several points belong to one, else nothing."""

    @classmethod
    def of_runs(
        cls, N: Floats, D: Floats, L: Floats, labels: tuple[str, ...], source: str, **more: Any
    ) -> Observations:
        """Return final losses by parameters and training tokens."""
        return cls({"N": N, "D": D}, L, labels, source, **more)

    def __post_init__(self) -> None:
        for name, column in (*self.x.items(), (self.outcome, self.y)):
            for label, value in zip(self.labels, column, strict=True):
                if not math.isfinite(value) or value <= 0:
                    raise DataError(
                        f"{self.source}: {label}: {name} is {value}, a logarithm needs a positive number"
                    )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def N(self) -> Floats:
        """Parameters."""
        return self.columns(("N",))["N"]

    @property
    def D(self) -> Floats:
        """Training tokens."""
        return self.columns(("D",))["D"]

    @property
    def L(self) -> Floats:
        """The outcome, where it is a loss."""
        return self.y

    @property
    def sha256(self) -> str:
        """Hash of the numbers alone, in their order."""
        return hashlib.sha256(np.stack([*self.x.values(), self.y]).astype("<f8").tobytes()).hexdigest()

    def columns(self, wanted: Iterable[str]) -> dict[str, Floats]:
        """Return these inputs, those that are not held derived. Raises DataError for one that does not follow."""
        try:
            return derive(self.x, wanted)
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from None

    def take(self, which: NDArray[Any]) -> Observations:
        """Return these points alone."""
        return replace(
            self,
            x={name: column[which] for name, column in self.x.items()},
            y=self.y[which],
            labels=tuple(self.labels[i] for i in which),
            runs=tuple(self.runs[i] for i in which) if self.runs else (),
        )

    def drop_highest_loss(self, count: int) -> Observations:
        """Return these without the `count` highest losses; each exclusion is kept as a sentence.

        Raises:
            DataError: `count` is negative.
        """
        if count < 0:
            raise DataError(f"drop_highest_loss={count}: at least 0")
        worst = np.sort(np.argsort(-self.y, kind="stable")[:count])
        gone = tuple(
            f"{self.labels[i]}: {self.outcome} = {self.y[i]:.6g}, among the {count} highest" for i in worst
        )
        return replace(
            self.take(np.setdiff1d(np.arange(len(self)), worst)),
            exclusions=self.exclusions + gone,
            left_out=self.take(worst) if count else self.left_out,
        )

    def joined(self, other: Observations) -> Observations:
        """Return the points of both. Raises DataError when they count FLOPs or sizes differently."""
        for what in ("outcome", "flops_convention", "size_convention", "data_convention"):
            mine, its = getattr(self, what), getattr(other, what)
            if mine != its:
                raise DataError(
                    f"{what.replace('_', ' ')}: {self.labels[0]} to {self.labels[-1]} of {self.source} have '{mine}', "
                    f"{other.labels[0]} to {other.labels[-1]} of {other.source} '{its}'; one fit takes one"
                )
        return replace(
            self,
            x={
                name: np.concatenate([column, other.columns((name,))[name]])
                for name, column in self.x.items()
            },
            y=np.concatenate([self.y, other.y]),
            labels=self.labels + other.labels,
            runs=self.runs + other.runs,
        )


def derive(x: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Return the wanted inputs: C = 6 N D, M = D / N (tokens a parameter), and x, which is C or the only input.

    Raises:
        DataError: one of them does not follow from those given.
    """
    known = {name: np.asarray(value, dtype=float) for name, value in x.items()}
    for name, sides in (("N", ("C", "D")), ("D", ("C", "N")), ("C", ("N", "D"))):
        if name not in known and all(side in known for side in sides):
            one, other = (known[side] for side in sides)
            known[name] = 6 * one * other if name == "C" else one / (6 * other)
    if "N" in known and "D" in known:
        known.setdefault("M", known["D"] / known["N"])
    if "C" in known:
        known.setdefault("x", known["C"])
    elif len(known) == 1 and known.keys().isdisjoint("NDM"):
        known["x"] = next(iter(known.values()))
    missing = [name for name in wanted if name not in known]
    if missing:
        raise DataError(
            f"{', '.join(missing)} is needed and does not follow from {', '.join(x) or 'nothing'}"
        )
    return {name: known[name] for name in wanted}


def read_table(
    path: Path,
    columns: Mapping[str, str],
    inputs: Iterable[str] = ("N", "D"),
    outcome: str = "L",
    where: Mapping[str, str] | None = None,
) -> Observations:
    """Return the rows of a table as a law's inputs and outcome.

    The table is a .csv, .tsv or .jsonl file, a metrics file or a run's directory, or TensorBoard's event files.

    `columns` maps symbols to column names: the outcome, and inputs or what they follow from (any two of N, D, C; the
    third is C = 6 N D, which is then the convention recorded). Four more may name columns of text: `run`, the run
    that a point belongs to, and `size`, `flops` and `data`, how its parameters, its FLOPs and D (tokens or sequences)
    were counted, one way in all rows.
    `where` keeps the rows that hold these texts in these columns.

    Raises:
        DataError: no such file or column, a row that is short, a value that is no positive number, a row twice,
            rows counted in different ways.
    """
    inputs = tuple(inputs)
    wanted = _wanted(columns, inputs, outcome)
    header, rows = _selected(path, {**columns, **{c: c for c in where or {}}}, where or {})
    values: dict[str, list[float]] = {name: [] for name in wanted}
    seen: dict[tuple[float | str, ...], int] = {}
    texts: dict[str, list[str]] = {name: [] for name in TEXTS if name in columns}
    for line, cells in rows:
        row = tuple(_number(path, line, columns[name], cells[header.index(columns[name])]) for name in wanted)
        told = tuple(cells[header.index(columns[name])] for name in texts)
        if (*row, *told) in seen:
            raise DataError(
                f"{path}:{line}: the same numbers as on line {seen[(*row, *told)]}; keep one of them"
            )
        seen[(*row, *told)] = line
        for name, value in zip(wanted, row, strict=True):
            values[name].append(value)
        for name, text in zip(texts, told, strict=True):
            texts[name].append(text)
    for name in CONVENTIONS:
        _one_convention(path, name, texts.get(name, []), [line for line, _ in rows])
    held = {name: np.array(column) for name, column in values.items()}
    y = held.pop(outcome)
    counted: dict[str, Any] = {name: column[0] for name, column in texts.items() if name in CONVENTIONS}
    if set(inputs) <= {"N", "D", "C", "M"}:
        held = derive(held, dict.fromkeys((*held, *inputs)))
    labels = tuple(f"line {line}" for line, _ in rows)
    return Observations(
        held,
        y,
        labels,
        str(path),
        outcome,
        **{f"{name}_convention": text for name, text in counted.items()},
        runs=tuple(texts.get("run", ())),
    )


CONVENTIONS = ("size", "flops", "data")
TEXTS = ("run", *CONVENTIONS)
"""Columns of text beside the numbers."""


def _one_convention(path: Path, what: str, texts: Sequence[str], lines: Sequence[int]) -> None:
    """Refuse rows that count in different ways."""
    for text, line in zip(texts, lines, strict=False):
        if text != texts[0]:
            raise DataError(
                f"{path}:{line}: {what} is '{text}', on line {lines[0]} it is '{texts[0]}'; one fit takes one "
                "convention: choose rows by column=value"
            )


def _wanted(columns: Mapping[str, str], inputs: Sequence[str], outcome: str) -> list[str]:
    """Return the columns of numbers that are asked for. Raises DataError when they do not make the inputs."""
    known = dict.fromkeys([*inputs, *("NDC" if {"N", "D", "C", "M", "x"} & set(inputs) else ())])
    unknown = set(columns) - set(known) - {outcome, *TEXTS}
    if unknown:
        raise DataError(f"columns: '{min(unknown)}' is none of {', '.join([*known, outcome, *TEXTS])}")
    given = [name for name in known if name in columns]
    compute = [name for name in given if name in "NDC"]
    try:
        derive(dict.fromkeys(given, 1.0), inputs)
        enough = len(compute) < 3
    except DataError:
        enough = False
    if outcome not in columns or not enough:
        need = "two of N, D, C" if {"N", "D"} <= set(inputs) else ", ".join(inputs)
        example = ",".join(f"{name}=column" for name in ([*inputs, outcome]))
        raise DataError(
            f"columns: name {outcome} and {need}, such as {example}; this names {', '.join(columns) or 'none'}"
        )
    return [*given, outcome]


def _selected(
    path: Path, columns: Mapping[str, str], where: Mapping[str, str]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the rows that hold what `where` asks for; every column named is there once."""
    table = _rows(path)
    header, rows = table.header, table.rows
    for name, column in columns.items():
        if header.count(column) > 1:
            raise DataError(
                f"{path}: {header.count(column)} columns are called '{column}'; rename all but one"
            )
        if column not in header:
            near = get_close_matches(column, header, n=1) or header
            raise DataError(f"{path}: no column '{column}' for {name}; there is {', '.join(map(repr, near))}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{path}:{line}: {len(cells)} columns, the header has {len(header)}")
    if table.sparse:
        wanted = [header.index(column) for column in columns.values()]
        rows = [row for row in rows if all(row[1][at] for at in wanted)]
        if not rows:
            raise DataError(f"{path}: no row has all of {', '.join(columns.values())}")
    kept = [row for row in rows if all(row[1][header.index(c)] == text for c, text in where.items())]
    if not kept:
        raise DataError(f"{path}: no row has " + ", ".join(f"{c}={text}" for c, text in where.items()))
    return header, kept


def _rows(path: Path) -> Rows:
    """Return the rows of any kind of file that is read as a table."""
    if path.exists() and is_metrics(path):
        return metrics_rows(path)
    if path.exists() and is_events(path):
        return event_rows(path)
    return json_rows(path) if path.suffix in JSON_LINES else _delimited(path)


def _delimited(path: Path) -> Rows:
    """Return the rows of a text table that are not empty; those of a log, by step, may lack columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a text table ({error})") from None
    if len(rows) < 2:
        raise DataError(f"{path}: holds no rows under a header")
    (_, header), *rows = rows
    return Rows(header, rows, sparse=not {"_step", "Step", "step"}.isdisjoint(header))


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{path}:{line}: column '{column}' holds {text!r}, which is no number") from None
    if not math.isfinite(value) or value <= 0:
        raise DataError(f"{path}:{line}: column '{column}' holds {text}, a logarithm needs a positive number")
    return value


def parse_columns(text: str) -> dict[str, str]:
    """Return {"N": column, ...} from `N=column,D=column`; names may hold spaces. Raises DataError."""
    pairs: Sequence[list[str]] = [part.split("=", 1) for part in text.split(",") if part]
    if any(len(pair) != 2 for pair in pairs):
        raise DataError(f"columns: '{text}'; write N=column,D=column,L=column")
    named = {name.strip(): column.strip() for name, column in pairs}
    if len(named) < len(pairs):
        raise DataError(f"columns: '{text}' names one symbol twice")
    return named
