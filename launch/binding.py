"""Which GPU, cores and network interfaces a rank has, held against what the site says is near to each other.

A rank whose GPU hangs on another socket than its cores works, and is slow for the whole run; two ranks on one GPU do,
too. Neither says so: hence the check before the first step.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

from launch.agree import everywhere
from launch.errors import LaunchError
from slurm.site import NodeGpus

VISIBLE = ("ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""Variables in which Slurm numbers the GPUs of a task, by their place in the node."""
SYSFS = Path("/sys")


class BindingError(LaunchError):
    """A rank has another GPU or other cores than the site says it should."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Given:
    """What the launcher gave a rank."""

    rank: int
    cores: frozenset[int]
    gpus: tuple[str, ...]
    """Those it sees, as their variable holds them."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a rank is to use."""

    gpu: int
    """Its place in the node."""
    device: int
    """Its place among the GPUs that this rank sees: torch's and CUDA's index."""
    nics: tuple[str, ...]
    """Network interfaces on the NUMA domain of its cores, where the machine says."""


def bind(comm: MPI.Intracomm, machine: NodeGpus) -> Binding:
    """Return what this rank is to use of a site with GPUs.

    Raises, on every rank the same:
        BindingError: the first rank whose GPU or cores are not those of the site, what was expected and what it got.

    Cost: a split of the communicator and a gather of some 100 bytes a rank inside each node, a barrier, an all-reduce.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        there = node.allgather(given(comm.rank))
        place = node.rank
    finally:
        node.Free()
    return everywhere(comm, lambda: choose(there, place, machine, nics(there[place].cores)))


def given(rank: int, environment: Mapping[str, str] = os.environ) -> Given:
    """Return what the launcher gave this process.

    Slurm sets no variable with `--gpu-bind=none`; to CUDA and ROCm that means all GPUs of the node.
    """
    all_gpus = ",".join(map(str, range(int(environment.get("SLURM_GPUS_ON_NODE", 0)))))
    held = next((environment[name] for name in VISIBLE if name in environment), all_gpus)
    gpus = tuple(word for word in held.split(",") if word)
    return Given(rank, frozenset(os.sched_getaffinity(0)), gpus)


def choose(node: list[Given], place: int, machine: NodeGpus, interfaces: tuple[str, ...] = ()) -> Binding:
    """Return what the rank at `place` of a node is to use, as `bind`; pure."""
    chosen = [_gpu(each, index, machine) for index, each in enumerate(node)]
    mine = node[place]
    for index, other in enumerate(node):
        if index == place:
            continue
        if chosen[index] == chosen[place]:
            raise BindingError(
                f"rank {mine.rank} with cores {spans(mine.cores)}: expected a GPU of its own, got GPU "
                f"{chosen[place]}, as rank {other.rank} did; ranks spread out when resources.threads fill a node"
            )
        if machine.gpu_of_l3 and mine.cores & other.cores:
            raise BindingError(
                f"rank {mine.rank}: expected cores of its own, got {spans(mine.cores)}, "
                f"of which rank {other.rank} has {spans(mine.cores & other.cores)}"
            )
    return Binding(chosen[place], mine.gpus.index(str(chosen[place])), interfaces)


def _gpu(got: Given, place: int, machine: NodeGpus) -> int:
    """Return the node's number of the GPU that a rank is to use: of those it sees, the nearest to its cores."""
    numbers = [int(word) for word in got.gpus if word.isdigit() and int(word) < machine.node_gpus]
    near = near_gpus(got.cores, machine)
    wanted = f"GPU {' or '.join(map(str, near))}" if near else f"one of {machine.node_gpus} GPUs"
    of = f" with cores {spans(got.cores)}" if near else ""
    if len(numbers) != len(got.gpus) or not numbers:
        seen = f"'{','.join(got.gpus)}'" if got.gpus else "none"
        raise BindingError(f"rank {got.rank}{of}: expected {wanted}, got {seen} in {' or '.join(VISIBLE)}")
    if not near:
        return numbers[place % len(numbers)]
    nearest = [gpu for gpu in near if gpu in numbers]
    if not nearest:
        raise BindingError(f"rank {got.rank}{of}: expected {wanted}, got GPU {', '.join(got.gpus)}")
    return nearest[0]


def near_gpus(cores: Collection[int], machine: NodeGpus) -> list[int]:
    """Return the GPUs that are nearest to any of these cores, in the cores' order; none where the site says nothing.

    A core's second hardware thread has the core's number and that of all the node's cores.
    """
    if not machine.gpu_of_l3 or not machine.cores_of_l3:
        return []
    node_cores = machine.cores_of_l3 * len(machine.gpu_of_l3)
    caches = sorted({core % node_cores // machine.cores_of_l3 for core in cores})
    return [machine.gpu_of_l3[cache] for cache in caches]


def nics(cores: Collection[int], sysfs: Path = SYSFS) -> tuple[str, ...]:
    """Return the interfaces of the high-speed network (hsn*) on the NUMA domain of these cores, sorted."""
    domains = {_number(path.name) for path in sysfs.glob("devices/system/cpu/cpu[0-9]*/node[0-9]*")
               if _number(path.parent.name) in cores}  # fmt: skip
    found = {}
    for path in sysfs.glob("class/net/hsn*/device/numa_node"):
        found[path.parts[-3]] = int(path.read_text())
    return tuple(sorted(name for name, domain in found.items() if domain in domains))


def spans(numbers: Collection[int]) -> str:
    """Return numbers as `0-6,64-70`."""
    text: list[str] = []
    first = last = None
    for number in [*sorted(numbers), None]:
        if number is not None and last is not None and number == last + 1:
            last = number
            continue
        if first is not None:
            text.append(f"{first}" if first == last else f"{first}-{last}")
        first = last = number
    return ",".join(text)


def _number(name: str) -> int:
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
