"""placeholder"""
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    run_id: str
    state: str
    N: float
    D: float
    C: float
    ranks: int
    loss: float | None
    wall_s: float | None
    held_out: bool
    excluded: bool
    cause: str
    curves: dict
def write_report(directory, study, runs, fit, problem): return Path("x")
