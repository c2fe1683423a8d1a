"""Laws, one file each: a module in this folder with a `LAW` is a law. Listing them imports nothing heavy."""

from __future__ import annotations

import pkgutil
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from analysis.errors import DataError

if TYPE_CHECKING:
    from analysis.law import Law


def names() -> list[str]:
    """Return the names of all laws, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Law:
    """Return the law called `name`. Raises DataError, with the nearest name, when there is none."""
    if name not in names():
        near = get_close_matches(name, names(), n=1) or names()
        raise DataError(f"no law '{name}'; there is {', '.join(near)}")
    law: Law = import_module(f"analysis.laws.{name}").LAW
    return law
