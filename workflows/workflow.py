"""What a kind of run must offer so that studies can be made of it. A kind is a folder with a `workflow.py`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from slurm.strict_yaml import KeyPath
from workflows.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RunSize:
    """What a run costs and is: parameters with and without embeddings, tokens, and FLOPs as counted."""

    n_total: int
    n_nonembedding: int
    d_tokens: int
    c_flops: float
    flops_convention: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a rank sends."""

    messages: int
    sent_bytes: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.messages + other.messages, self.sent_bytes + other.sent_bytes)

    def times(self, times: int) -> Traffic:
        """Return the same so many times."""
        return Traffic(self.messages * times, self.sent_bytes * times)


@dataclass(frozen=True, slots=True)
class RankFootprint:
    """What a rank at one place of a layout holds at most and sends in a step."""

    place: str
    parameters: int
    static_bytes: int
    """Weights, gradients and the optimizer's state during a step."""
    between_steps_bytes: int
    """The same between two steps."""
    microbatch_bytes: int
    """Kept of a microbatch until its gradient comes; of the rank's largest stage."""
    in_flight: int
    """Microbatches that are kept at once, at most."""
    transient_bytes: int
    """Held for a moment only, at most."""
    peak_bytes: int
    traffic: dict[str, Traffic]
    """By axis of the layout."""

    @property
    def messages(self) -> int:
        """Messages a step over all axes."""
        return sum(sent.messages for sent in self.traffic.values())


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a layout costs, by arithmetic alone."""

    layout: dict[str, int]
    """Ranks along each axis."""
    ranks: tuple[RankFootprint, ...]
    """One for each place at which ranks differ."""

    @property
    def fullest(self) -> RankFootprint:
        """The place that needs the most memory."""
        return max(self.ranks, key=lambda rank: rank.peak_bytes)


@dataclass(frozen=True, slots=True)
class Workflow:
    """One kind of run. Importing it must stay cheap: no torch, no MPI."""

    name: str
    description: str
    config: type[BaseModel]
    """The frozen configuration of one run."""
    program: str
    """Module that each rank runs with `RUN_DIR` as its argument."""
    mathematics: Callable[[Any], dict[str, Any]]
    """Config -> the part of it that decides the result; the run id is its hash."""
    size: Callable[[Any], RunSize]
    check_ranks: Callable[[Any, int], None]
    """Raise ValueError with a sentence when the config cannot run on so many ranks."""
    prepare: Callable[[Any, Path], str]
    """Make what runs share (such as the token file) in a directory, once; return a line that says what it is."""
    isoflop_keys: tuple[KeyPath, KeyPath]
    """Where a sweep's `isoflop.flops` and `isoflop.widths` go in the config."""
    footprint: Callable[[Any, int], Footprint] | None = None
    """(Config, ranks) -> memory and messages of a rank; None where they are not known."""
    progress: str = "train_loss"
    """The stream whose last row says how far a run is."""
    facts: Callable[[Any, int], dict[str, int | float | str]] | None = None
    """(Config, ranks) -> what a plan shows of a run, by name; None for parameters, tokens and FLOPs."""
    idle_gpus: Callable[[Any], str] | None = None
    """Config -> why it would leave ranks' GPUs idle and what to set, empty where it would not; None where no run of
    this kind uses GPUs."""
    estimated_s: Callable[[Any, int, int], float] | None = None
    """(Config, ranks, threads) -> a rough wall time; None where it follows from FLOPs."""


def names() -> list[str]:
    """Return the names of the kinds of run."""
    here = Path(__file__).parent
    return sorted(
        m.name for m in pkgutil.iter_modules([str(here)]) if (here / m.name / "workflow.py").exists()
    )


def get(name: str) -> Workflow:
    """Return the kind of run called `name`. Raises ConfigError, with the nearest name, when there is none."""
    if name not in names():
        near = get_close_matches(name, names(), n=1) or names()
        raise ConfigError(f"workflow: no workflow '{name}'; there is {', '.join(near)}")
    found: Workflow = import_module(f"workflows.{name}.workflow").WORKFLOW
    return found
