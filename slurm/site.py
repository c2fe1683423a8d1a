"""What a machine is: its scheduler, cores and launcher. Adding a site is adding one YAML file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from slurm.errors import SiteError
from slurm.strict_yaml import load
from slurm.typed import build

SITES = Path(__file__).parent / "sites"
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:=@%+/-]*")
"""What a directive, an option's value or a module's name may consist of: nothing that a shell or Slurm interprets."""
_OPTION = re.compile(rf"--?{WORD.pattern}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bin:
    """The walltime that jobs of up to `nodes` nodes may ask for."""

    nodes: int
    hours: int


@dataclass(frozen=True, slots=True)
class Queue:
    """One way to queue a job: the sbatch options that ask for it, and its limits."""

    name: str
    options: tuple[str, ...]
    bins: tuple[Bin, ...]
    """Ascending in nodes; the last says how many nodes a job may have at most."""
    jobs_max: int = 0
    """Jobs a user may have in it, waiting or running; 0 = not known."""

    def __post_init__(self) -> None:
        _all(_OPTION, "options", self.options)
        sizes = [limit.nodes for limit in self.bins]
        if not sizes or sizes != sorted(set(sizes)):
            raise ValueError(f"queue '{self.name}': bins hold {sizes} nodes; they take ascending numbers")

    @property
    def nodes_max(self) -> int:
        """Most nodes of one job."""
        return self.bins[-1].nodes

    def walltime_max_s(self, nodes: int) -> int:
        """Return the longest walltime of a job of so many nodes; 0 when it may not have so many."""
        return next((limit.hours * 3600 for limit in self.bins if nodes <= limit.nodes), 0)


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """A node's GPUs and the cores that are near to each: what ranks are held against."""

    node_gpus: int
    gpu_of_l3: tuple[int, ...] = ()
    cores_of_l3: int = 0


@dataclass(frozen=True, slots=True)
class Scheduler:
    """What a Slurm machine asks of a job, and what it gives. The first queue is the default."""

    queues: tuple[Queue, ...]
    node_cores: int
    """Cores of a node that ranks may use."""
    node_gpus: int = 0
    """GPUs of a node; 0 = ranks run on cores."""
    cpus_per_core: int = 1
    """What Slurm counts as CPUs of a core: 2 where it counts hardware threads."""
    gpu_of_l3: tuple[int, ...] = ()
    """Which GPU is nearest to the cores of the first, second, ... L3 cache; ranks are held against it."""
    cores_of_l3: int = 0
    """Cores of each of these, with those that the system keeps."""
    account_needed: bool = False
    sbatch: tuple[str, ...] = ()
    """Options of every job."""
    srun: tuple[str, ...] = ()
    """Options of every step that runs ranks."""
    srun_gpus: tuple[str, ...] = ()
    """Options of a step whose ranks use GPUs, one each."""
    modules: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    environment_many_nodes: dict[str, str] = field(default_factory=dict)
    """Further variables of jobs on more than one node."""
    stage_root: str = ""
    """Node-local directory in which a job may unpack its environment; empty = there is none."""
    signal: str = "USR1"
    """Sent before the walltime ends. Not USR2, which ends MPICH's mpiexec."""
    warn_s: int = 300
    """How long before the walltime's end."""
    poll_s: tuple[float, ...] = (40.0, 180.0)
    """How often the scheduler may be asked at most, and at least, in seconds."""

    def __post_init__(self) -> None:
        for name in ("sbatch", "srun", "srun_gpus"):
            _all(_OPTION, name, getattr(self, name))
        _all(WORD, "modules", self.modules)
        for variables in (self.environment, self.environment_many_nodes):
            check_environment(variables)
        if self.signal not in ("USR1", "TERM", "INT", "HUP"):
            raise ValueError(f"signal holds {self.signal!r}, it takes USR1, TERM, INT or HUP")
        if self.gpu_of_l3 and sorted(self.gpu_of_l3) != list(range(self.node_gpus)):
            raise ValueError(
                f"gpu_of_l3 holds {self.gpu_of_l3}, it takes each of 0 to {self.node_gpus - 1} once"
            )
        if self.gpu_of_l3 and self.cores_of_l3 * len(self.gpu_of_l3) < self.node_cores:
            raise ValueError(
                f"cores_of_l3 holds {self.cores_of_l3}: times {len(self.gpu_of_l3)} in gpu_of_l3 it is at least "
                f"node_cores={self.node_cores}"
            )
        if len(self.poll_s) != 2 or not 0 < self.poll_s[0] <= self.poll_s[1]:
            raise ValueError(f"poll_s holds {self.poll_s}, it takes two numbers, the smaller first")
        if not self.queues or not self.node_cores:
            raise ValueError("queues and node_cores hold nothing; a scheduler has at least one of each")
        if self.stage_root and not self.stage_root.startswith("/"):
            raise ValueError(f"stage_root holds {self.stage_root!r}, it takes an absolute path")

    @property
    def gpus(self) -> NodeGpus | None:
        """The GPUs of a node, None where it has none."""
        return NodeGpus(self.node_gpus, self.gpu_of_l3, self.cores_of_l3) if self.node_gpus else None

    @property
    def poll_range_s(self) -> tuple[float, float]:
        """The shortest and longest pause between two questions."""
        return self.poll_s[0], self.poll_s[1]

    def queue(self, name: str | None) -> Queue:
        """Return the queue of that name, the first for None. Raises SiteError when there is none."""
        found = [queue for queue in self.queues if name in (None, queue.name)]
        if not found:
            raise SiteError(f"queue: no queue '{name}'; there is {', '.join(q.name for q in self.queues)}")
        return found[0]


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
    scheduler: Scheduler | None = None
    """None = runs start on the machine at hand."""

    def usable_cores(self) -> int:
        """Return how many ranks times threads may run at once."""
        return self.cores or len(os.sched_getaffinity(0))

    def slurm(self) -> Scheduler:
        """Return the scheduler. Raises SiteError when the site has none."""
        if self.scheduler is None:
            raise SiteError(f"site '{self.name}' has no scheduler; `isoflop run` starts its runs here")
        return self.scheduler


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
    return build(Site, load(Path(name) if is_file else SITES / f"{name}.yaml"))


def check_environment(variables: dict[str, str]) -> None:
    """Do nothing if a script may hold these variables.

    Raises:
        ValueError: a name that is none, or speaks of a secret; a value of more than one line.
    """
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"environment: {name!r} is no name of a variable")
        if _SECRET.search(name):
            raise ValueError(
                f"environment: {name} may be a secret, which no script holds; the job can read a file"
            )
        if not value.isprintable():
            raise ValueError(f"environment: {name} holds {value!r}, it takes one line of text")


def _all(pattern: re.Pattern[str], field_name: str, values: tuple[str, ...]) -> None:
    for value in values:
        if not pattern.fullmatch(value):
            raise ValueError(f"{field_name} holds {value!r}, which is not one plain word")
