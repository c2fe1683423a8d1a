"""What would make a job fail, said before it waits for hours in a queue."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slurm.allocation import Allocation
from slurm.client import Client
from slurm.errors import RefusedError, SpecError
from slurm.script import render
from slurm.site import Site
from slurm.spec import JobSpec, format_walltime

ACCOUNT = "SBATCH_ACCOUNT"
Job = JobSpec | Allocation


def preflight(
    job: Job,
    site: Site,
    environment: Mapping[str, str],
    client: Client | None,
    write: Callable[[Any, Site], str] = render,
) -> list[str]:
    """Return what is wrong with a job, a sentence each; empty when nothing is. Without a client no scheduler is asked.

    `write` renders its script.

    Raises:
        UnreachableError: the scheduler does not answer.
    """
    found = [*_limits(job, site, environment), *_paths(job)]
    return found if found or client is None else list(_asked(job, site, client, write))


def _limits(job: Job, site: Site, environment: Mapping[str, str]) -> Iterator[str]:
    scheduler = site.slurm()
    queue = scheduler.queue(job.queue)
    nodes = job.nodes(scheduler)
    longest_s = queue.walltime_max_s(nodes)
    if not longest_s:
        yield f"{nodes} nodes: queue '{queue.name}' of {site.name} takes at most {queue.nodes_max}"
    wanted_s = job.walltime_s or longest_s
    if longest_s and wanted_s > longest_s:
        yield (
            f"walltime {format_walltime(wanted_s)}: queue '{queue.name}' grants {nodes} nodes at most "
            f"{format_walltime(longest_s)}; the job requeues itself, so it need not be longer"
        )
    if longest_s and wanted_s <= scheduler.warn_s:
        yield (
            f"walltime {format_walltime(wanted_s)}: the warning to save comes {scheduler.warn_s} s before its end, "
            "so nothing would be done"
        )
    if scheduler.account_needed and not job.account and not environment.get(ACCOUNT):
        yield f"account: {site.name} charges a project; give --account, or set {ACCOUNT}"
    if job.archive and not scheduler.stage_root:
        yield f"archive {job.archive}: {site.name} has no node-local disk to unpack it on"


def _paths(job: Job) -> Iterator[str]:
    here = job.directory or Path.cwd()
    if not here.is_dir():
        yield f"{here}: no such directory"
        return
    if not job.archive and not os.access(here / job.python, os.X_OK):
        yield f"python {here / job.python}: no such program"
    if job.archive and not os.access(here / job.archive, os.R_OK):
        yield f"archive {here / job.archive}: no such file, or not readable"
    run_dir = here / job.run_dir
    nearest = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield f"run directory {run_dir}: {nearest} is not a directory that can be written"


def _asked(job: Job, site: Site, client: Client, write: Callable[[Any, Site], str]) -> Iterator[str]:
    queue = site.slurm().queue(job.queue)
    waiting = [answer for answer in client.queued().values() if answer.state.phase != "ended"]
    if queue.jobs_max and len(waiting) >= queue.jobs_max:
        yield f"{len(waiting)} of your jobs wait or run already: queue '{queue.name}' takes {queue.jobs_max}"
        return
    try:
        client.test(write(job, site))
    except (RefusedError, SpecError) as error:
        yield f"the scheduler would refuse the job: {error}"
