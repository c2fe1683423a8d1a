"""Parsl's side of a site with a scheduler: its MPIExecutor carries attempts to the nodes of a study's allocations.

Parsl is asked for no allocation: `workflows.pilots` does that and ends them (docs/adr/0007). What Parsl reports of an
attempt only says when to look into the run's directory.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import parsl
from parsl.config import Config
from parsl.curvezmq import create_certificates
from parsl.executors import MPIExecutor, ThreadPoolExecutor
from parsl.jobs.states import JobStatus
from parsl.launchers import SimpleLauncher
from parsl.providers.base import ExecutionProvider
from parsl.providers.errors import SubmitException

from launch.attempt import GRACE_S, INTERRUPTED, Step
from launch.bootstrap import REQUEUE
from launch.rundir import ExitRecord, RunDir, make_private, write_exit, write_private
from slurm.client import Client
from slurm.script import step_options
from workflows.parsl_app import attempt_on_nodes
from workflows.parsl_sites import DRIVER, Say
from workflows.pilots import DETACHED, Fleet, Pilot, check_detached, nodes_of, resources_of
from workflows.study import Run, Study

FOLDER = ".pilots"
TICK_S = 0.2
HEARTBEAT_S, SILENCE_S = 10, 60
"""How often an allocation says that it is there, and after what silence it counts as lost (and ends itself)."""
IDLE_S = 60.0
"""How long an allocation may stand idle before it is given back."""


class _NoProvider(ExecutionProvider):
    """What an executor has to have. Its allocations come from elsewhere."""

    label = "pilots"
    status_polling_interval = 0

    def __init__(self) -> None:
        self.min_blocks = self.init_blocks = self.max_blocks = 0
        self.nodes_per_block, self.parallelism = 1, 1.0
        self.script_dir: str | None = None
        self.resources: dict[object, Any] = {}
        self.cores_per_node: int | None = None
        self.mem_per_node: float | None = None
        self.launcher = SimpleLauncher()

    def submit(self, command: str, tasks_per_node: int, job_name: str = "") -> object:  # noqa: ARG002
        """Refuse as Parsl wants to hear it. Its executor, which may have no blocks, never asks."""
        raise SubmitException(job_name, "the fleet asks for allocations")  # type: ignore[no-untyped-call]

    def status(self, _job_ids: Sequence[object]) -> Sequence[JobStatus]:
        """Know of none."""
        return []

    def cancel(self, job_ids: Sequence[object]) -> Sequence[bool]:
        """End none."""
        return [False for _ in job_ids]


class Pilots:
    """Where attempts run as steps of allocations."""

    def __init__(self, study: Study, fleet: Fleet, executor: MPIExecutor, kernel: Any) -> None:
        self.fleet = fleet
        self._study, self._executor = study, executor
        self._app = parsl.python_app(data_flow_kernel=kernel, executors=[executor.label])(attempt_on_nodes)
        fleet.on_end = self._hold
        self._unfinished: dict[str, int] = {}
        """Nodes of each run that is being brought to its end, by its id."""

    def _hold(self, pilot: Pilot) -> None:
        """Send nothing more to an allocation that is over: Parsl would until it misses its heartbeats."""
        if self._is_connected():
            hold: Callable[[str], None] = self._executor._hold_block
            hold(pilot.token)

    def _is_connected(self) -> bool:
        """Return whether Parsl's interchange lives; a question to a dead one would wait for ever."""
        process = self._executor.interchange_proc
        return process is not None and process.poll() is None

    @contextmanager
    def room(self, run: Run) -> Iterator[None]:
        """Count the run among those that want nodes, for the body."""
        self._unfinished[run.id] = nodes_of(run, self._study)
        try:
            yield
        finally:
            self._unfinished.pop(run.id, None)

    def expect(self, runs: Sequence[Run]) -> None:
        """Say which runs will want nodes, before their turn comes."""
        self._unfinished.update({run.id: nodes_of(run, self._study) for run in runs})

    def stop(self) -> None:
        """Let the ranks commit what they have and end."""
        self.fleet.warn(self.fleet.alive)

    def tick(self) -> None:
        """Keep as many allocations as the unfinished runs can fill, and give back those that none fills."""
        if not self._is_connected() and not self.fleet.problem:
            self.fleet.problem = f"Parsl's interchange has ended; see {self._executor.logdir}"
            self.fleet.leave(self.fleet.alive)
        limit = self._study.file.pilots.at_most
        wanted = min(limit, -(-sum(self._unfinished.values()) // self.fleet.nodes))
        self.fleet.tick(wanted)
        if len(self.fleet.alive) > wanted and self._is_connected():
            self._give_back(len(self.fleet.alive) - wanted)

    def _give_back(self, count: int) -> None:
        waiting = [pilot for pilot in self.fleet.alive if pilot.phase == "queued"]
        idle = {
            manager["block_id"]
            for manager in self._executor.connected_managers()
            if manager["tasks"] == 0 and manager["idle_duration"] > IDLE_S
        }
        spare = [*waiting, *(pilot for pilot in self.fleet.alive if pilot.token in idle)]
        self.fleet.leave(spare[:count])

    def attempt(self, run: Run, directory: RunDir, stop: threading.Event) -> ExitRecord:
        """Return how the next attempt ended: its own record, else what became of its allocation."""
        resources, before = resources_of(run), directory.attempts()
        options = step_options(resources, self._study.site.slurm())
        step = Step(self._study.workflow.program, resources.ranks, tuple(options))
        size = {
            "num_nodes": (nodes := nodes_of(run, self._study)),
            "num_ranks": resources.ranks,
            "ranks_per_node": -(-resources.ranks // nodes),
        }
        future = self._app(str(directory.path.resolve()), step, parsl_resource_specification=size)
        self._wait(future, stop, directory, before)
        begun = directory.attempts() != before
        if not future.done() and not (begun and self._is_over(job_of(directory))):
            cause = "the driver was interrupted" if stop.is_set() else self.fleet.problem
            return _ended(INTERRUPTED if stop.is_set() else 3, cause)
        error = future.exception() if future.done() else None
        record = directory.last_exit()
        if record is not None and (begun or (future.done() and error is None)):
            return record
        return self._cut(directory, begun, error, stop)

    def _wait(
        self, future: Future[None], stop: threading.Event, directory: RunDir, before: Sequence[int]
    ) -> None:
        """Wait for an attempt; when the driver is to stop, only for as long as ranks, if there are any, take to commit.

        Parsl notices some time after the scheduler that an allocation is gone with all that ran on it.
        """
        ended = self.fleet.ended
        while not future.done() and not stop.is_set():
            if self.fleet.problem and not self.fleet.alive:
                return
            if self.fleet.ended != ended:
                ended = self.fleet.ended
                if directory.attempts() != before and self._is_over(job_of(directory)):
                    return
            wait([future], TICK_S)
        if directory.attempts() != before:
            wait([future], GRACE_S)

    def _is_over(self, job_id: str | None) -> bool:
        return any(pilot.job_id == job_id and pilot.ended_s is not None for pilot in self.fleet.pilots)

    def _cut(
        self, directory: RunDir, begun: bool, error: BaseException | None, stop: threading.Event
    ) -> ExitRecord:
        """Return what became of an attempt without a word of its own: it goes on elsewhere, or never began."""
        if error is not None and type(error).__name__ != "ManagerLost":
            what = "it could not be started on its nodes" if not begun else "its end could not be recorded"
            return _ended(1, f"{what}: {type(error).__name__}: {error}")
        if not begun:
            return _ended(INTERRUPTED, "its allocation ended before it began")
        job_id = job_of(directory)
        while job_id in [pilot.job_id for pilot in self.fleet.alive] and not stop.wait(TICK_S):
            pass  # the driver's next tick hears of its end
        if record := directory.last_exit():
            return record
        words = {pilot.job_id: pilot.sentence for pilot in self.fleet.pilots}
        cause = f"allocation {job_id} {words[job_id]}" if job_id in words else "its allocation ended"
        record = ExitRecord(REQUEUE, cause, -1, directory.committed_step(), time.time(), time.time())
        if not directory.is_alive():
            write_exit(directory, directory.attempts()[-1], record)
        return record


def _ended(code: int, cause: str) -> ExitRecord:
    return ExitRecord(code, cause, -1, -1, time.time(), time.time())


def job_of(directory: RunDir) -> str | None:
    """Return the number of the job that the last attempt's ranks were in, as they noted it."""
    try:
        held = json.loads(directory.provenance.read_text())[str(directory.attempts()[-1])]
        return str(held["environment"]["SLURM_JOB_ID"])
    except (OSError, ValueError, KeyError, IndexError):
        return None


@contextmanager
def pilots(study: Study, say: Say, account: str | None, queue: str | None) -> Iterator[tuple[Any, Pilots]]:
    """Yield Parsl's kernel and the allocations of a study, which are all ended afterwards.

    Raises:
        RefusedError: an allocation would fail; a sentence for each reason.
        UnreachableError: the scheduler does not answer.
    """
    check_detached()
    folder = make_private(study.directory / FOLDER)
    port, certificates = _port(folder), folder / "certificates"
    if not certificates.exists():
        create_certificates(folder)
    address = _address()

    def command(token: str) -> list[str]:
        program = Path(sys.executable).parent / "process_worker_pool.py"
        drain_s = max(60, fleet.affordable_s() - study.site.slurm().warn_s)
        return [
            *(str(program), f"--max_workers_per_node={fleet.nodes}", "-a", address, "-p", "0"),
            *("-c", "1e-09", "-m", "None", "--poll", "10", f"--port={port}"),
            *("--cert_dir", f"{FOLDER}/certificates", f"--logdir={FOLDER}/workers", f"--block_id={token}"),
            *(f"--hb_period={HEARTBEAT_S}", f"--hb_threshold={SILENCE_S}", f"--drain_period={drain_s}"),
            *("--cpu-affinity", "none", "--enable_mpi_mode", "--mpi-launcher=srun"),
        ]

    fleet = Fleet(study, Client(), port, command, say, account, queue)
    fleet.take_over()
    fleet.check()
    executor = MPIExecutor(
        label="pilots",
        provider=_NoProvider(),
        address=address,
        worker_port=port,
        mpi_launcher="srun",
        max_workers_per_block=fleet.nodes,
        heartbeat_period=HEARTBEAT_S,
        heartbeat_threshold=SILENCE_S,
        block_error_handler=False,
        encrypted=True,
    )
    # Ctrl-C reaches the driver alone, and what it leaves behind when it is killed would hold its port.
    executor.interchange_launch_cmd = [*DETACHED, "interchange.py"]
    # An allocation that an earlier driver asked for has these certificates, too.
    executor.cert_dir = str(certificates.resolve())  # type: ignore[assignment]
    threads = min(len(study.runs), fleet.nodes * study.file.pilots.at_most) + 1
    driver = ThreadPoolExecutor(label=DRIVER, max_threads=threads)
    config = Config(
        executors=[driver, executor],
        run_dir=str(make_private(study.directory / ".parsl")),
        strategy="none",
        initialize_logging=False,
        usage_tracking=0,
    )
    with parsl.load(config) as kernel:
        place = Pilots(study, fleet, executor, kernel)
        try:
            yield kernel, place
        finally:
            runs = [study.run_dir(run) for run in study.runs]
            fleet.leave(
                fleet.alive, GRACE_S, lambda: not any(run.is_alive() for run in runs if run.path.is_dir())
            )


def _address() -> str:
    """Return where compute nodes reach this host: what its own name stands for."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _port(folder: Path) -> int:
    """Return the port of earlier drivers of this study if it is free, else a free one, which is noted."""
    note = folder / "port"
    held = int(note.read_text()) if note.exists() and note.read_text().isdigit() else 0
    for wanted in (held, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", wanted))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            break
    write_private(note, str(port))
    return port
