"""Parsl's side of the machine, or the allocation, that this process is on, and the cores that runs may fill there."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import parsl
from parsl.config import Config
from parsl.executors import ThreadPoolExecutor

from launch.attempt import Command, Step, run_attempt
from launch.rundir import ExitRecord, RunDir, make_private
from slurm.script import step_options
from slurm.site import Site
from slurm.spec import Resources
from workflows.study import Run, Study

DRIVER = "driver"
"""The executor whose apps are threads of this process."""
Say = Callable[[str], None]


class Cores:
    """The cores of a site, lent in the order of asking, so that a wide run is not overtaken for ever."""

    def __init__(self, total: int) -> None:
        self._free = total
        self._turns: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def lent(self, wanted: int) -> Iterator[None]:
        """Hold `wanted` cores for the body, waiting for one's turn and for so many to be free."""
        turn = object()
        with self._changed:
            self._turns.append(turn)
            self._changed.wait_for(lambda: self._turns[0] is turn and self._free >= wanted)
            self._turns.popleft()
            self._free -= wanted
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


class Here:
    """Where an attempt is a child of this process: `mpiexec` on this machine, or a step of the allocation we are in."""

    def __init__(self, study: Study) -> None:
        self._study, self._cores = study, Cores(cores_here(study.site))
        self._total = cores_here(study.site)

    @contextmanager
    def room(self, run: Run) -> Iterator[None]:
        """Hold the run's cores for the body."""
        with self._cores.lent(min(run.resources.ranks * run.resources.threads, self._total)):
            yield

    def expect(self, runs: Sequence[Run]) -> None:
        """Nothing has to be asked for."""

    def tick(self) -> None:
        """Nothing has to be asked for."""

    def stop(self) -> None:
        """Nothing has to be said: who waits for an attempt ends it."""

    def attempt(self, run: Run, directory: RunDir, stop: threading.Event) -> ExitRecord:
        """Bring the next attempt to its end and return how it ended."""
        return run_attempt(directory, self._starts(run), stop)

    def _starts(self, run: Run) -> Command | Step:
        resources, module, site = run.resources, self._study.workflow.program, self._study.site
        if site.scheduler is None:
            wanted = resources.ranks * resources.threads
            return Command(module, resources.ranks, resources.threads, site.launcher, wanted > self._total)
        options = step_options(Resources(resources.ranks, resources.threads), site.scheduler)
        return Step(module, resources.ranks, (*options, "--exact"))  # steps may share a node


def cores_here(site: Site) -> int:
    """Return the cores that runs may fill together: the machine's, or those of the allocation we are in."""
    if site.scheduler is None:
        return site.usable_cores()
    return int(os.environ["SLURM_JOB_NUM_NODES"]) * site.scheduler.node_cores


@contextmanager
def here(study: Study) -> Iterator[tuple[Any, Here]]:
    """Yield Parsl's kernel and this machine, or the allocation that this process is in.

    An app is a thread that waits for its `mpiexec` or `srun`: runs of different widths then share the cores
    exactly, which equal worker slots cannot do.
    """
    threads = min(len(study.runs), cores_here(study.site)) + 1
    config = Config(
        executors=[ThreadPoolExecutor(label=DRIVER, max_threads=threads)],
        run_dir=str(make_private(study.directory / ".parsl")),
        strategy="none",
        initialize_logging=False,
        usage_tracking=0,
    )
    with parsl.load(config) as kernel:
        yield kernel, Here(study)
