"""Observations for a law, from a text table or from arrays: sizes N, tokens D, losses L, and what was left out."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.errors import DataError

Floats = NDArray[np.float64]
SIX_ND = "C = 6 N D"


@dataclass(frozen=True, slots=True)
class Observations:
    """Points that a law is fitted to, one a run; `labels` name them in messages and plots."""

    N: Floats
    """Parameters."""
    D: Floats
    """Training tokens."""
    L: Floats
    """Final loss, nat/token."""
    labels: tuple[str, ...]
    source: str
    flops_convention: str = SIX_ND
    size_convention: str = "as given"
    exclusions: tuple[str, ...] = ()
    """What was left out, a sentence each."""

    def __post_init__(self) -> None:
        for label, *values in zip(self.labels, self.N, self.D, self.L, strict=True):
            for name, value in zip("NDL", values, strict=True):
                if not math.isfinite(value) or value <= 0:
                    raise DataError(
                        f"{self.source}: {label}: {name} is {value}, a logarithm needs a positive number"
                    )

    def __len__(self) -> int:
        return len(self.L)

    @property
    def sha256(self) -> str:
        """Hash of the numbers alone, in their order."""
        return hashlib.sha256(np.stack([self.N, self.D, self.L]).astype("<f8").tobytes()).hexdigest()

    def drop_highest_loss(self, count: int) -> Observations:
        """Return these without the `count` highest losses; each exclusion is kept as a sentence.

        Raises:
            DataError: `count` is negative.
        """
        if count < 0:
            raise DataError(f"drop_highest_loss={count}: at least 0")
        worst = np.argsort(-self.L, kind="stable")[:count]
        gone = tuple(
            f"{self.labels[i]}: L = {self.L[i]:.6g}, among the {count} highest" for i in sorted(worst)
        )
        keep = np.setdiff1d(np.arange(len(self)), worst)
        return replace(
            self,
            N=self.N[keep],
            D=self.D[keep],
            L=self.L[keep],
            labels=tuple(self.labels[i] for i in keep),
            exclusions=self.exclusions + gone,
        )


def read_table(path: Path, columns: Mapping[str, str]) -> Observations:
    """Return the rows of a .csv or .tsv file. `columns` maps L and any two of N, D, C to column names.

    The third of N, D, C follows from C = 6 N D, which is then the convention recorded.

    Raises:
        DataError: no such file or column, a row that is short, a value that is no positive number, a row twice.
    """
    wanted = _wanted(columns)
    rows = _rows(path)
    header = rows[0][1]
    for name, column in columns.items():
        if header.count(column) > 1:
            raise DataError(
                f"{path}: {header.count(column)} columns are called '{column}'; rename all but one"
            )
        if column not in header:
            near = get_close_matches(column, header, n=1) or header
            raise DataError(f"{path}: no column '{column}' for {name}; there is {', '.join(map(repr, near))}")
    values: dict[str, list[float]] = {name: [] for name in wanted}
    seen: dict[tuple[float, ...], int] = {}
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise DataError(f"{path}:{line}: {len(cells)} columns, the header has {len(header)}")
        row = tuple(_number(path, line, columns[name], cells[header.index(columns[name])]) for name in wanted)
        if row in seen:
            raise DataError(f"{path}:{line}: the same numbers as on line {seen[row]}; keep one of them")
        seen[row] = line
        for name, value in zip(wanted, row, strict=True):
            values[name].append(value)
    held = {name: np.array(column) for name, column in values.items()}
    if "N" not in held:
        held["N"] = held["C"] / (6 * held["D"])
    if "D" not in held:
        held["D"] = held["C"] / (6 * held["N"])
    labels = tuple(f"line {line}" for line, _ in rows[1:])
    return Observations(held["N"], held["D"], held["L"], labels, str(path))


def _wanted(columns: Mapping[str, str]) -> list[str]:
    unknown = set(columns) - set("NDLC")
    if unknown:
        raise DataError(f"columns: '{min(unknown)}' is none of N, D, C, L")
    sizes = [name for name in "NDC" if name in columns]
    if "L" not in columns or len(sizes) != 2:
        raise DataError(
            "columns: name L and two of N, D, C, such as N=params,D=tokens,L=loss; "
            f"this names {', '.join(columns) or 'none'}"
        )
    return [*sizes, "L"]


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return (line, cells) of every row that is not empty, the header first."""
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
    return rows


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
        raise DataError(f"columns: '{text}' names one of N, D, C, L twice")
    return named
