"""A study file and the runs it stands for. Reading and expanding a study touches nothing but that file."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from analysis import laws
from analysis.errors import DataError
from analysis.resampling import parse_resampling
from launch.rundir import RUN_ID, RunDir
from slurm.site import Site, load_site
from slurm.strict_yaml import Document, KeyPath, dumps, load
from workflows.config import Section, apply_overrides, leaves, parse, put
from workflows.errors import ConfigError, RefusedError
from workflows.workflow import RunSize, Workflow, get

NO_LAW = "none"
LOCK = "lock"
"""File in a study's directory that its driver holds locked."""
STOP = "stop"
"""File in a study's directory that asks its driver to stop, from any host."""
START_UP_S = 5.0
"""What `plan` allows a run for starting Python, MPI and torch."""


class Resources(Section):
    """What each run gets. A run of a sweep or a hold-out may set its own."""

    ranks: int = Field(default=1, ge=1)
    """MPI ranks."""
    threads: int = Field(default=1, ge=1)
    """Threads a rank; ranks times threads never exceed the site's cores."""
    retries: int = Field(default=1, ge=0)
    """How often a run that failed is started again, from its last checkpoint."""
    oversubscribe: bool = False
    """Whether ranks may outnumber the site's cores and take turns on them; their times then say little."""


class Pilots(Section):
    """Allocations that the runs share on a site with a scheduler. Nodes are lent to runs whole."""

    nodes: int | None = Field(default=None, ge=1)
    """Of each allocation; default: as many as the widest run takes."""
    walltime: str | None = None
    """H:MM:SS of each; default: the longest that the queue grants so many nodes."""
    at_most: int = Field(default=1, ge=1, le=100)
    """Allocations at once."""
    node_hours: float | None = Field(default=None, gt=0)
    """What all of them together may cost; no allocation is asked for that could cost more."""


class Isoflop(Section):
    """Every compute budget with every width."""

    flops: list[float] = Field(min_length=1)
    """Training FLOPs of a run, as the workflow counts them; tokens follow from the very model."""
    widths: list[int] = Field(min_length=1)
    """Model widths."""


class Sweep(Section):
    """Which runs: the product of those of the three that are given."""

    grid: dict[str, list[Any]] = Field(default={})
    """Dotted key -> values; all combinations."""
    points: list[dict[str, Any]] = Field(default=[], alias="list")
    """One run (or one factor) for each item, an item being keys and values as in `base`."""
    isoflop: Isoflop | None = None
    """Compute budgets times widths."""


class Analysis(Section):
    """Which law is fitted to the finished runs, and how."""

    law: str = "chinchilla"
    """A name from `isoflop list laws`; `none` where runs are only to be looked at."""
    laws: list[str] = Field(default=[])
    """Laws that it is held against."""
    hold: dict[str, float] = Field(default={})
    """Parameters that are given, not fitted, in every law that has them."""
    size: Literal["total", "nonembedding"] = "total"
    """Which parameters N counts."""
    bootstrap: int = Field(default=1000, ge=0)
    """Resamples behind the intervals."""
    bootstrap_by: str = "point"
    """What a resample draws: point, run or block:SIZE, in the order of the runs."""
    delta: float = Field(default=1e-3, gt=0)
    """Where the Huber loss turns from square to linear, in log loss."""
    seed: int = 0
    """Of the resampling."""
    exclude: list[str] = Field(default=[])
    """Run ids kept out of the fit, decided before the runs."""

    @property
    def candidates(self) -> list[str]:
        """The law and those it is held against; none where none is asked for."""
        return [] if self.law == NO_LAW else list(dict.fromkeys([self.law, *self.laws]))


class StudyFile(Section):
    """A study as written."""

    name: str = Field(pattern=f"^{RUN_ID.pattern}$")
    """Also the name of the study's directory."""
    workflow: str
    """A kind of run from `isoflop list workflows`."""
    site: str = "local"
    """A site from `isoflop list sites`, or a path to a `.yaml` file."""
    runs_dir: str = "runs"
    """Where study directories go, relative to where the command is typed."""
    base: dict[str, Any] = Field(default={})
    """The configuration that all runs share."""
    sweep: Sweep = Field(default=Sweep())
    """What differs from run to run."""
    holdout: list[dict[str, Any]] = Field(default=[])
    """Runs that the fit never sees; the law's prediction is held against them."""
    resources: Resources = Field(default=Resources())
    """What each run gets."""
    pilots: Pilots = Field(default=Pilots())
    """Where a scheduler has to be asked for nodes: how many, how long, how often."""
    analysis: Analysis = Field(default=Analysis())
    """The fit."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a study."""

    id: str
    config: BaseModel
    size: RunSize
    resources: Resources
    held_out: bool
    known_s: float | None = None
    """A rough wall time in the words of the workflow."""

    def estimated_s(self, site: Site) -> float:
        """Return a rough wall time, else from the site's figure of sustained FLOPs a core."""
        if self.known_s is not None:
            return self.known_s
        cores = self.resources.ranks * self.resources.threads
        return START_UP_S + self.size.c_flops / (site.sustained_flops_per_s * cores)


@dataclass(frozen=True, slots=True)
class Study:
    """A study read, checked and expanded."""

    file: StudyFile
    workflow: Workflow
    site: Site
    runs: tuple[Run, ...]
    directory: Path
    resolved: dict[str, Any]
    """The study's data with every override applied, as it is written to the study's directory."""

    def run_dir(self, run: Run) -> RunDir:
        """Return the directory of `run`."""
        return RunDir(self.directory / run.id)

    @property
    def cache_dir(self) -> Path:
        """Where this study and its neighbours share prepared data."""
        return self.directory.parent / ".data"

    def run_yaml(self, run: Run, cache_dir: Path) -> str:
        """Return the text of `run`'s `run.yaml`: all that its ranks need to know, with data in `cache_dir`."""
        gpus = self.site.scheduler.gpus if self.site.scheduler else None
        held = {
            "id": run.id,
            "study": self.file.name,
            "workflow": self.workflow.name,
            "site": self.site.name,
            **({"gpus": asdict(gpus)} if gpus else {}),
            "gemm_peak_flops_per_s": self.site.gemm_peak_flops_per_s,
            "held_out": run.held_out,
            "cache_dir": str(cache_dir),
            "config": run.config.model_dump(mode="json"),
        }
        return dumps(held)

    def estimated_s(self) -> float:
        """Return a rough wall time of the whole study with the site's cores kept busy."""
        core_s = sum(
            run.estimated_s(self.site) * run.resources.ranks * run.resources.threads for run in self.runs
        )
        longest_s = max(run.estimated_s(self.site) for run in self.runs)
        return max(longest_s, core_s / self.site.usable_cores())


@dataclass(frozen=True, slots=True)
class _Setting:
    """One value that a run sets, and where in the file it stands."""

    path: KeyPath
    value: Any
    origin: KeyPath


def read_study(path: Path, overrides: list[str] | None = None, site: str | None = None) -> Study:
    """Return the study in the file `path` with `--set` overrides applied and every run checked.

    Raises:
        ConfigError, YamlError, SiteError: the first thing that is wrong, with file, line and key.
        RefusedError: a run would leave the GPUs idle that its site gives it.
    """
    document = load(path)
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}: a study is a mapping of keys such as name, workflow, base, sweep")
    data = apply_overrides(document.data, [*(overrides or []), *([f"site={site}"] if site else [])])
    file = parse(StudyFile, data, lambda at: _place(document, at))
    workflow, machine = get(file.workflow), load_site(file.site)
    _check_analysis(document, file.analysis)
    runs = tuple(_expand(document, file, workflow))
    for run in runs:
        _check_resources(document, run, machine, workflow)
    _distinct(path, runs)
    unknown = set(file.analysis.exclude) - {run.id for run in runs}
    if unknown:
        place = _place(document, ("analysis", "exclude"))
        raise ConfigError(f"{place}: no run '{min(unknown)}'; see the ids with `isoflop plan`")
    return Study(file, workflow, machine, runs, Path(file.runs_dir) / file.name, data)


def _expand(document: Document, file: StudyFile, workflow: Workflow) -> list[Run]:
    """Return every run: the product of the sweep's factors, then the hold-outs."""
    factors: list[list[list[_Setting]]] = []
    if file.sweep.isoflop:
        isoflop: dict[str, list[Any]] = file.sweep.isoflop.model_dump()
        for (key, values), target in zip(isoflop.items(), workflow.isoflop_keys, strict=True):
            factors.append(
                [[_Setting(target, v, ("sweep", "isoflop", key, i))] for i, v in enumerate(values)]
            )
    for key, values in file.sweep.grid.items():
        at = tuple(key.split("."))
        factors.append([[_Setting(at, v, ("sweep", "grid", key, i))] for i, v in enumerate(values)])
    if file.sweep.points:
        factors.append([_settings(item, ("sweep", "list", i)) for i, item in enumerate(file.sweep.points)])
    swept = [list(itertools.chain(*choice)) for choice in itertools.product(*factors)]
    if not swept:
        raise ConfigError(f"{_place(document, ('sweep',))}: expands to no run; give every list a value")
    held_out = [_settings(item, ("holdout", i)) for i, item in enumerate(file.holdout)]
    return [_run(document, file, workflow, settings, False) for settings in swept] + [
        _run(document, file, workflow, settings, True) for settings in held_out
    ]


def _settings(item: dict[str, Any], origin: KeyPath) -> list[_Setting]:
    return [_Setting(path, value, (*origin, *path)) for path, value in leaves(item)]


def _run(
    document: Document, file: StudyFile, workflow: Workflow, settings: list[_Setting], held_out: bool
) -> Run:
    """Return one run, or raise with the place in the file that its wrong value comes from."""
    config_data, resources = file.base, file.resources.model_dump()
    origins: dict[KeyPath, KeyPath] = {}
    for setting in settings:
        origins[setting.path] = setting.origin
        try:
            if setting.path[0] == "resources":
                resources = put({"resources": resources}, setting.path, setting.value)["resources"]
            else:
                config_data = put(config_data, setting.path, setting.value)
        except TypeError as error:
            raise ConfigError(f"{_place(document, setting.origin)}: {error}") from None

    def where(prefix: KeyPath, at: KeyPath) -> str:
        for length in range(len(at), 0, -1):
            if (*prefix, *at[:length]) in origins:
                origin = origins[(*prefix, *at[:length])]
                return f"{_place(document, origin)} ({'.'.join(map(str, at))})"
        for (
            path,
            origin,
        ) in origins.items():  # a section as a whole does not fit: most likely for what varies in it
            if path[: len(prefix) + len(at)] == (*prefix, *at):
                return _place(document, origin)
        return _place(document, (*(prefix or ("base",)), *at))

    config = parse(workflow.config, config_data, lambda at: where((), at))
    granted = parse(Resources, resources, lambda at: where(("resources",), at))
    mathematics = json.dumps([workflow.name, workflow.mathematics(config)], sort_keys=True)
    digest = hashlib.sha256(mathematics.encode()).hexdigest()[:8]
    # Ranks of a grid tell runs of one result apart, as strong scaling needs; other resources name no run.
    shown = [s for s in settings if s.path[0] != "resources" or s.origin[:2] == ("sweep", "grid")]
    label = "-".join(f"{s.path[-1]}{_short(s.value)}" for s in shown) or "base"
    run_id = f"{label[:55].strip('-.')}-{digest}"
    told_s = workflow.estimated_s and workflow.estimated_s(config, granted.ranks, granted.threads)
    return Run(run_id, config, workflow.size(config), granted, held_out, told_s)


def _short(value: Any) -> str:
    """Return a value as it may stand in a run id: `2.4e11`, `wsd`."""
    text = f"{value:g}".replace("e+", "e") if isinstance(value, int | float) else str(value).lower()
    return re.sub(r"[^a-z0-9._-]+", "-", text)


def _check_resources(document: Document, run: Run, site: Site, workflow: Workflow) -> None:
    """Refuse what the site does not have and what the workflow cannot split."""
    place = _place(document, ("resources",))
    wanted, cores = run.resources.ranks * run.resources.threads, site.usable_cores()
    if wanted > cores and not run.resources.oversubscribe:
        raise ConfigError(
            f"{place}: run {run.id} wants {run.resources.ranks} ranks of {run.resources.threads} threads, "
            f"site '{site.name}' has {cores} cores"
        )
    try:
        workflow.check_ranks(run.config, run.resources.ranks)
    except ValueError as error:
        raise ConfigError(f"{place}: run {run.id}: {error}") from None
    idle = workflow.idle_gpus(run.config) if workflow.idle_gpus else ""
    if idle and site.scheduler and site.scheduler.gpus:
        raise RefusedError(
            f"{document.source}: run {run.id}: each rank would get a GPU of site '{site.name}' and leave it idle, "
            f"since {idle}, or take a site file without node_gpus"
        )


def _distinct(path: Path, runs: tuple[Run, ...]) -> None:
    """Refuse two runs with one id: they would share a directory."""
    seen: set[str] = set()
    for run in runs:
        if run.id in seen:
            raise ConfigError(f"{path}: two runs of the sweep are the same run, {run.id}")
        seen.add(run.id)


def _check_analysis(document: Document, analysis: Analysis) -> None:
    """Refuse what the fit would refuse, before any run starts."""
    known = [*laws.names(), NO_LAW]
    for key, names in (("law", [analysis.law]), ("laws", analysis.laws)):
        for name in names:
            if name not in known or (name == NO_LAW) > (key == "law"):
                place = _place(document, ("analysis", key))
                raise ConfigError(f"{place}: no law '{name}'; there is {', '.join(known)}")
    if analysis.law == NO_LAW and (analysis.laws or analysis.hold):
        place = _place(document, ("analysis", "law"))
        raise ConfigError(f"{place}: holds none, so that nothing is fitted; leave out `laws` and `hold`")
    for name in analysis.hold:
        if not any(laws.get(law).holds(name) for law in analysis.candidates):
            place = _place(document, ("analysis", "hold", name))
            raise ConfigError(f"{place}: no parameter of {', '.join(analysis.candidates)} that can be held")
    try:
        parse_resampling(analysis.bootstrap_by)
    except DataError as error:
        raise ConfigError(f"{_place(document, ('analysis', 'bootstrap_by'))}: {error}") from None


def _place(document: Document, path: KeyPath) -> str:
    """Return `file:line: key.path`."""
    line = document.line(path)
    return f"{document.source}{f':{line}' if line else ''}: {'.'.join(map(str, path)) or 'the study'}"
