"""What a machine is: its scheduler, cores and launcher. Adding a site is adding one YAML file."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from slurm.strict_yaml import load

SITES = Path(__file__).parent / "sites"


class SiteError(Exception):
    """A site that does not exist or whose file is wrong; the message names file and key."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Site:
    """One machine. A field without a value in the file takes the default written here."""

    name: str
    description: str
    launcher: str
    """Program that starts ranks: the `mpiexec` beside the running Python, or one on PATH."""
    cores: int = 0
    """Cores that runs may fill together; 0 = those this process may use."""
    sustained_flops_per_s: float = 5e9
    """FLOPs a core sustains on a small model; only `plan` uses it, until finished runs tell better."""
    gemm_peak_flops_per_s: float = 0.0
    """Fastest matrix product that was measured, FLOPs a core, on a site with GPUs a GPU; a run that seems faster
    measured wrong. 0 = each run measures it when it starts."""

    def usable_cores(self) -> int:
        """Return how many ranks times threads may run at once."""
        return self.cores or len(os.sched_getaffinity(0))


def names() -> list[str]:
    """Return the names of the sites that ship with the suite, sorted."""
    return sorted(path.stem for path in SITES.glob("*.yaml"))


def load_site(name: str) -> Site:
    """Return the site called `name`, or the one in a file when `name` ends in `.yaml`.

    Raises:
        SiteError: no such site, an unknown or missing key, a wrong type.
        YamlError: the file is not strict YAML.
    """
    is_file = name.endswith(".yaml")
    if not is_file and name not in names():
        raise SiteError(
            f"site: no site '{name}'; there are {', '.join(names())}, or give a path to a .yaml file"
        )
    path = Path(name) if is_file else SITES / f"{name}.yaml"
    document = load(path)
    if not isinstance(document.data, dict):
        raise SiteError(f"{path}: a site is a mapping of keys, this is {document.data!r}")
    values = {key: _checked(path, document.line((key,)), key, held) for key, held in document.data.items()}
    for field in fields(Site):
        if field.default is MISSING and field.name not in values:
            raise SiteError(f"{path}: key '{field.name}' is missing")
    return Site(**values)


def _checked(path: Path, line: int | None, key: str, value: Any) -> Any:
    """Return `value` if it is of the type that field `key` of a Site has, else raise."""
    kinds = {field.name: field.type for field in fields(Site)}
    if key not in kinds:
        near = get_close_matches(key, kinds, n=1) or sorted(kinds)
        raise SiteError(f"{path}:{line}: unknown key '{key}'; did you mean {' or '.join(near)}?")
    wanted: tuple[type, ...] = {"str": (str,), "int": (int,), "float": (int, float)}[str(kinds[key])]
    fits = isinstance(value, wanted) and not isinstance(value, bool)
    if not fits or (isinstance(value, int | float) and value < 0):
        raise SiteError(f"{path}:{line}: {key} holds {value!r}, it takes a non-negative {kinds[key]}")
    return value
