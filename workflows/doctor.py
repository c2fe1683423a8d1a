"""What is likely to spoil a run on this machine, looked at before any run: `isoflop doctor`."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from launch.attempt import find_launcher
from launch.errors import LaunchError
from slurm.client import Client
from slurm.errors import RefusedError, UnreachableError
from slurm.site import Site

Verdict = Literal["ok", "warning", "wrong", "not checked"]
OURS = ("analysis", "launch", "mpi_ops", "slurm", "workflows")
TIME_LIMIT_S = 120
SKEW_S = 2.0
LEAST_BYTES, LEAST_FILES = 2**30, 10_000

# Each rank speaks for itself: two worlds of one rank must not look like one of two.
PROBE = """
import json, socket, time
from mpi4py import MPI
comm, gpu = MPI.COMM_WORLD, ""
if %(gpus)d:
    import torch
    gpu = "none"
    if torch.cuda.is_available():
        ones = torch.ones(1024, device="cuda")
        torch.cuda.synchronize()
        comm.Allreduce(MPI.IN_PLACE, ones)
        gpu = "right" if bool((ones == comm.size).all()) else "a wrong sum"
comm.Barrier()
library = MPI.Get_library_version().splitlines()[0].strip("\\x00 ")
word = {"size": comm.size, "host": socket.gethostname(), "time_s": time.time(), "library": library, "gpu": gpu}
print("\\n" + json.dumps(word), flush=True)
"""
READ = "import h5py, sys; assert h5py.File(sys.argv[1], 'r', swmr=True)['rows'].shape == (3,)"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and in what state it is."""

    check: str
    verdict: Verdict
    sentence: str


def examine(site: Site, runs_dir: Path) -> list[Finding]:
    """Return what there is to say on this machine as `site`, with runs kept in `runs_dir`, which must exist."""
    return [
        *names(metadata.packages_distributions()),
        *scheduler(site),
        *driver(site),
        *ranks(site),
        *network_plugin(site, os.environ),
        *hdf5(runs_dir),
        *space(runs_dir),
        *file_clock(runs_dir),
    ]


def names(owners: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Yield whether our packages are ours: other distributions use these names, too."""
    root = Path(__file__).resolve().parent.parent
    for name in OURS:
        others = sorted(set(owners.get(name, [])) - {"isoflop"})
        found = importlib.util.find_spec(name)
        origin = Path(found.origin).resolve() if found and found.origin else None
        if origin is None or not origin.is_relative_to(root):
            yield Finding(
                "names", "wrong", f"`import {name}` finds {origin}, not {root / name}; look at PYTHONPATH"
            )
        elif others:
            yield Finding("names", "wrong", f"{name} belongs to {', '.join(others)}, too: pip uninstall it")
        else:
            continue
        return
    yield Finding("names", "ok", f"{', '.join(OURS)} are those of {root}")


def scheduler(site: Site) -> Iterator[Finding]:
    """Yield whether the scheduler answers."""
    if site.scheduler is None:
        return
    try:
        jobs = Client().queued().values()
    except UnreachableError as error:
        yield Finding("scheduler", "wrong", str(error))
        return
    alive = sum(job.state.phase != "ended" for job in jobs)
    yield Finding("scheduler", "ok", f"answers; {alive} of your jobs wait or run")


def driver(site: Site) -> Iterator[Finding]:
    """Yield whether a driver of a study could keep its helper from Ctrl-C and from outliving it."""
    if site.scheduler is None:
        return
    from workflows.pilots import DETACHED, check_detached  # only now: it loads packages that `names` looks at

    try:
        check_detached()
    except RefusedError as error:
        yield Finding("driver", "wrong", f"`isoflop run` will not start: {error}")
        return
    yield Finding("driver", "ok", f"{DETACHED[0]} and {DETACHED[1]} do what `isoflop run` needs")


def ranks(site: Site) -> Iterator[Finding]:
    """Yield what two ranks say that the site's launcher starts: one world? which MPI? clocks? GPUs?"""
    batch = site.scheduler
    if batch and batch.account_needed and "SLURM_JOB_ID" not in os.environ:
        yield Finding(
            "ranks", "not checked", "start doctor inside an allocation (salloc) to have ranks started"
        )
        return
    try:
        argv = [find_launcher(site.launcher), *(["--immediate=30", *batch.srun] if batch else []), "-n", "2"]
        gpus = bool(batch and batch.node_gpus)
        argv += [
            *(batch.srun_gpus if batch else ()),
            sys.executable,
            "-m",
            "mpi4py",
            "-c",
            PROBE % {"gpus": gpus},
        ]
        words = _words(argv)
    except (LaunchError, subprocess.SubprocessError, OSError) as error:
        yield Finding("ranks", "wrong", f"two ranks could not be started: {str(error).splitlines()[0][:200]}")
        return
    yield from judged(site.launcher, words)


def judged(launcher: str, words: list[dict[str, Any]]) -> Iterator[Finding]:
    """Yield what follows from the words of two ranks."""
    library = words[0]["library"] if words else "no MPI"
    sizes = [word["size"] for word in words]
    if sizes == [2, 2]:
        yield Finding("world size", "ok", f"{launcher} starts one world of 2 ranks with {library}")
    else:
        why = f"mpi4py uses {library}, which does not belong to this launcher"
        yield Finding("world size", "wrong", f"{launcher} -n 2 starts worlds of {sizes or 'no'} ranks: {why}")
        return
    skew_s = max(word["time_s"] for word in words) - min(word["time_s"] for word in words)
    verdict: Verdict = "warning" if skew_s > SKEW_S else "ok"
    yield Finding("clocks of ranks", verdict, f"after a barrier {skew_s:.3f} s apart")
    gpus = {word["gpu"] for word in words}
    if gpus == {"right"}:
        yield Finding("GPU-aware MPI", "ok", "an all-reduce of GPU memory gave the right sum")
    elif gpus & {"", "none"}:
        yield Finding("GPU-aware MPI", "not checked", "no GPU here")
    else:
        yield Finding("GPU-aware MPI", "wrong", f"an all-reduce of GPU memory gave {', '.join(sorted(gpus))}")


def network_plugin(site: Site, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether NCCL or RCCL would find its way to the network of a site with GPUs."""
    if not site.scheduler or not site.scheduler.node_gpus:
        return
    folders = [Path(folder) for folder in environment.get("LD_LIBRARY_PATH", "").split(":") if folder]
    found = [path for folder in folders for path in sorted(folder.glob("lib[nr]ccl-net*.so*"))]
    if found:
        yield Finding("NCCL/RCCL plugin", "ok", str(found[0]))
    else:
        said = "no libnccl-net*.so or librccl-net*.so on LD_LIBRARY_PATH: messages between nodes would use sockets"
        yield Finding("NCCL/RCCL plugin", "warning", said)


def hdf5(runs_dir: Path) -> Iterator[Finding]:
    """Yield whether metrics can be written here and read meanwhile, and whether locks hold."""
    import h5py

    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=runs_dir) as folder:
        path = Path(folder) / "probe.h5"
        try:
            with h5py.File(path, "x", libver="latest") as file:
                rows = file.create_dataset("rows", shape=(0,), maxshape=(None,), dtype="f8", chunks=(16,))
                file.swmr_mode = True
                rows.resize((3,))
                rows.flush()
                read = subprocess.run(
                    [sys.executable, "-c", READ, path], capture_output=True, timeout=TIME_LIMIT_S
                )
            with open(Path(folder) / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            hint = "set HDF5_USE_FILE_LOCKING=BEST_EFFORT, or keep runs on another file system"
            yield Finding("HDF5 and locks", "wrong", f"{runs_dir}: {error}; {hint}")
            return
    kind = file_system(runs_dir, Path("/proc/mounts").read_text())
    if read.returncode:
        yield Finding("HDF5 and locks", "wrong", f"{runs_dir} ({kind}): a file being written cannot be read")
    elif kind.startswith("nfs"):
        yield Finding(
            "HDF5 and locks", "warning", f"{runs_dir} is on {kind}, where a reader may see half a row"
        )
    else:
        yield Finding(
            "HDF5 and locks", "ok", f"{runs_dir} ({kind}): metrics can be read while they are written"
        )


def file_system(path: Path, mounts: str) -> str:
    """Return the kind of file system that `path` is on, given the text of /proc/mounts."""
    resolved = path.resolve()
    held = [line.split()[1:3] for line in mounts.splitlines()]
    above = [(len(at), kind) for at, kind in held if resolved.is_relative_to(at.replace("\\040", " "))]
    return max(above, default=(0, "unknown"))[1]


def space(runs_dir: Path) -> Iterator[Finding]:
    """Yield whether runs have room. A quota that is full shows when something is really written."""
    free_bytes, free_files = shutil.disk_usage(runs_dir).free, os.statvfs(runs_dir).f_favail
    try:
        with tempfile.TemporaryFile(dir=runs_dir) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding("quota", "wrong", f"{runs_dir}: 1 MiB cannot be written: {error.strerror}")
        return
    scarce = free_bytes < LEAST_BYTES or 0 < free_files < LEAST_FILES
    said = f"{runs_dir}: {free_bytes / 2**30:.1f} GiB and {free_files:,} files free, 1 MiB written"
    yield Finding("quota", "warning" if scarce else "ok", said)


def file_clock(runs_dir: Path) -> Iterator[Finding]:
    """Yield whether the file server and this machine agree on the time."""
    with tempfile.NamedTemporaryFile(dir=runs_dir) as file:
        file.write(b"now")
        file.flush()
        skew_s = abs(time.time() - os.stat(file.name).st_mtime)
    verdict: Verdict = "warning" if skew_s > SKEW_S else "ok"
    yield Finding("clock of files", verdict, f"{skew_s:.3f} s from that of this machine")


def _words(argv: list[str]) -> list[dict[str, Any]]:
    """Return what each rank of a probe printed. Raises OSError with its complaint when it failed."""
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=TIME_LIMIT_S, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise OSError(done.stderr.strip() or f"{argv[0]} ended with code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
