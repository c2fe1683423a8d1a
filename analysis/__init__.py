"""Metrics store, scaling laws, fits and reports; never torch, MPI or Parsl.

`from analysis import fit, read_table, Observations, FitResult` is the library; importing the package alone costs
nothing, since ranks do so and scipy opens thousands of files.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "FitResult": "analysis.result",
    "Observations": "analysis.table",
    "fit": "analysis.fitting",
    "read_table": "analysis.table",
}
__all__ = ["FitResult", "Observations", "fit", "read_table"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'analysis' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
