"""What the verbs of the analysis print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from workflows import show

if TYPE_CHECKING:
    from analysis.allocation import Allocation
    from analysis.compare import Comparison
    from analysis.hpc import Scaling
    from workflows.fits import Found


def fit_text(found: Found) -> str:
    """Return the chosen approach first, then the exponents of all of them."""
    chosen = found.chosen
    parts = []
    if found.fitted:
        parts.append(show.fit_text(found.fitted))
        parts += [f"profile of {name}: {_span(ends)}" for name, ends in found.profiles.items()]
    elif chosen:
        parts.append(show.table(("FLOPs", "N", "loss"), [[f"{v:.4g}" for v in row] for row in chosen.optima]))
        parts += [f"no optimum: {sentence}" for sentence in chosen.dropped]
    return "\n".join([*parts, "", allocation_text(found.allocations)] if found.allocations else parts)


def allocation_text(found: Mapping[str, Allocation | str]) -> str:
    """Return the exponents of N_opt ~ C^a and D_opt ~ C^b by every approach."""
    rows = [
        (name, "", "", "", one)
        if isinstance(one, str)
        else (
            name,
            f"{one.a:.4f}",
            f"{one.b:.4f}",
            _span(one.interval),
            f"{len(one.dropped)} budgets show none" * bool(one.dropped),
        )
        for name, one in found.items()
    ]
    return show.table(("approach", "a", "b", "95 % interval of a", "remark"), rows)


def comparison_text(rows: Sequence[Comparison]) -> str:
    """Return the laws, best first, and the verdict."""
    from analysis.compare import verdict
    from analysis.summary import COMPARISON_COLUMNS, comparison_rows

    return "\n".join([show.table(COMPARISON_COLUMNS, comparison_rows(rows)), verdict(rows)])


def comparison_data(rows: Sequence[Comparison]) -> dict[str, Any]:
    """Return the same as JSON-able data."""
    from analysis.compare import verdict

    return {"laws": [asdict(row) for row in rows], "verdict": verdict(rows)}


def prediction_text(found: Mapping[str, Any]) -> str:
    """Return the prediction as a line, and every doubt as another."""
    [outcome] = found.keys() - {"law", "at", "interval", "warnings"}
    at = ", ".join(f"{name} = {value:.6g}" for name, value in found["at"].items())
    line = f"{outcome} = {found[outcome]:.6g} at {at}"
    if found["interval"]:
        line += f", 95 % interval {_span(found['interval'])}"
    return "\n".join([line, *(f"warning: {sentence}" for sentence in found["warnings"])])


def optimal_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each compute."""
    rows = [
        (f"{best['C']:.4g}", *(_with_span(best, name) for name in "NDL"), "; ".join(best["warnings"]))
        for best in found
    ]
    return show.table(("FLOPs", "N", "D", "loss", "remark"), rows)


def scaling_text(found: Scaling) -> str:
    """Return efficiencies, then each law's parameters."""
    rows = [
        [
            f"{row.p:g}",
            f"{row.time:.6g}",
            f"{row.speedup:.4f}",
            f"{100 * row.efficiency:.1f} %",
            _number(row.serial_fraction, ".4f"),
        ]
        for row in found.rows
    ]
    parts = [show.table(("p", "t", "speed-up", "efficiency", "serial fraction"), rows)]
    for fitted, criterion in found.fits:
        parts.append(
            f"{fitted.law}, AICc {criterion:.2f}{_peak(fitted.law, fitted.params)}\n{show.fit_text(fitted)}"
        )
    return "\n\n".join([*parts, "\n".join(found.remarks)])


def scaling_data(found: Scaling) -> dict[str, Any]:
    """Return the same as JSON-able data."""
    return {
        "weak": found.weak,
        "rows": [asdict(row) for row in found.rows],
        "fits": [{**fitted.to_json(), "aicc": criterion} for fitted, criterion in found.fits],
        "remarks": found.remarks,
    }


def _peak(law: str, params: Mapping[str, float]) -> str:
    """Return where the USL's throughput peaks."""
    if law != "usl":
        return ""
    from analysis.laws.usl import LAW

    peak = float(LAW.peak(params))  # type: ignore[arg-type]
    return f", most throughput at p = {peak:.4g}" if peak < float("inf") else ", no peak"


def _number(value: float, form: str) -> str:
    return "" if value != value else f"{value:{form}}"


def _span(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else ""


def _with_span(best: Mapping[str, Any], name: str) -> str:
    ends = best.get("intervals", {}).get(name)
    return f"{best[name]:.4g}" + (f" ({_span(ends)})" if ends else "")
