"""A fit as Markdown, for a note or an issue: the tables of the terminal and of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis import laws
from analysis.result import FitResult
from analysis.summary import COEFFICIENT_COLUMNS, Row, coefficient_rows, remarks


def fit_markdown(fit: FitResult, profiles: Mapping[str, tuple[float, float]] | None = None) -> str:
    """Return the law, its coefficients (with the ends of their profiles), and what a reader must know of them."""
    lines = [f"# {fit.law}", "", f"`{laws.get(fit.law).description}`", ""]
    lines += _table(COEFFICIENT_COLUMNS, coefficient_rows(fit))
    if profiles:
        rows = [(name, f"{low:.4g} to {high:.4g}") for name, (low, high) in profiles.items()]
        lines += ["", *_table(("parameter", "95 % interval by profile"), rows)]
    lines += ["", *(f"- {sentence}" for sentence in remarks(fit))]
    return "\n".join([*lines, f"- data {fit.data_sha256[:16]} from `{fit.source}`, seed {fit.seed}", ""])


def _table(columns: Row, rows: Sequence[Row]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
