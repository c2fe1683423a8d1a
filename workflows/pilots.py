"""The allocations of a study: asked for, followed and ended, each written down before the scheduler hears of it.

An allocation is found again by the token in its comment, whatever became of the driver that asked for it. Nothing here
knows how runs get onto its nodes.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch.rundir import RunDir, write_private
from slurm.allocation import Allocation, render_allocation
from slurm.client import Answer, Client
from slurm.errors import RefusedError, UnreachableError
from slurm.poll import Poll, Submitted
from slurm.preflight import preflight
from slurm.spec import Resources, capture, parse_walltime
from workflows.batch import CAPTURED
from workflows.errors import ConfigError
from workflows.study import Run, Study

FILE = "pilots.json"
DEATHS = 2
"""Runs that die on a node before no further allocation takes it."""
LANDING_S = 30.0
"""How long an sbatch whose driver died may still be on its way to the scheduler."""
DETACHED = ("setsid", "setpriv", "--pdeathsig", "KILL")
"""How a driver's helper is started: deaf to the Ctrl-C that reaches the driver, and gone when the driver is killed."""
FRUITLESS = 3
"""Allocations in a row that end without having started any attempt."""


@dataclass(frozen=True, slots=True)
class Pilot:
    """One allocation as it is written down. Times are Unix seconds."""

    token: str
    name: str
    nodes: int
    walltime_s: int
    submitted_s: float
    host: str
    """Where the driver was that it reports to, and at which port."""
    port: int
    job_id: str | None = None
    waited_s: float = 0.0
    """When it was last known not to have started."""
    ended_s: float | None = None
    phase: str = "queued"
    sentence: str = "has just been submitted"

    def node_hours(self) -> float:
        """Return what it has cost, as long as it lasts what it may cost; never too little."""
        longest = self.nodes * self.walltime_s / 3600
        if self.ended_s is None:
            return longest
        return min(longest, self.nodes * max(0.0, self.ended_s - max(self.waited_s, self.submitted_s)) / 3600)

    @property
    def submitted(self) -> Submitted:
        """What the scheduler is asked about."""
        return Submitted(self.job_id or "", self.name, self.submitted_s)


def read_pilots(directory: Path) -> list[Pilot]:
    """Return the allocations of the study in `directory`, oldest first."""
    try:
        return [Pilot(**held) for held in json.loads((directory / FILE).read_text())]
    except (OSError, ValueError, TypeError):
        return []


def nodes_of(run: Run, study: Study) -> int:
    """Return how many nodes a run takes. Raises SpecError when a node has no room for a rank."""
    return resources_of(run).nodes(study.site.slurm())


def resources_of(run: Run) -> Resources:
    """Return a run's resources as the scheduler counts them."""
    return Resources(run.resources.ranks, run.resources.threads)


def bad_nodes(runs: Iterable[RunDir]) -> list[str]:
    """Return the nodes on which at least DEATHS attempts lost a rank that left no word."""
    deaths: Counter[str] = Counter()
    for run in runs:
        for number in run.attempts() if run.path.is_dir() else ():
            record = run.exit_record(number)
            deaths[record.node if record else ""] += 1
    return sorted(node for node, count in deaths.items() if node and count >= DEATHS)


def check_detached() -> None:
    """Raise RefusedError when a driver cannot start its helper as DETACHED."""
    try:
        done = subprocess.run([*DETACHED, "true"], capture_output=True, text=True, timeout=10)
    except OSError as error:
        raise RefusedError(f"{error.filename}: {error.strerror}; it comes with util-linux") from None
    if done.returncode:
        raise RefusedError(f"{' '.join(DETACHED)}: {done.stderr.strip()}; a newer util-linux is needed")


class Fleet:
    """The allocations that are asked for on behalf of one study. Used by the driver that holds the study's lock."""

    def __init__(
        self,
        study: Study,
        client: Client,
        port: int,
        argv: Callable[[str], list[str]],
        say: Callable[[str], None],
        account: str | None = None,
        queue: str | None = None,
    ) -> None:
        """`argv` gives the command of an allocation with that token, which reports to `port` of this host."""
        self.problem = ""
        """Why no further allocation will be asked for, in a sentence; empty as long as one may be."""
        self.on_end: Callable[[Pilot], None] = lambda _pilot: None
        """Told of each allocation that is over, before anybody else can see that."""
        self._study, self._client, self._say = study, client, say
        self._port, self._argv, self._host = port, argv, socket.gethostname()
        self._account, self._queue = account, queue
        self._poll = Poll(client, study.site.slurm().poll_range_s)
        self._due_s = 0.0
        self._attempts, self._fruitless = self._count_attempts(), 0
        self.pilots = read_pilots(study.directory)
        self.nodes = check_pilots(study)

    @property
    def alive(self) -> list[Pilot]:
        """Those that have not ended as far as is known."""
        return [pilot for pilot in self.pilots if pilot.ended_s is None]

    def take_over(self) -> None:
        """Find what earlier drivers left: keep what waits and will report to this one, end the others.

        Raises:
            UnreachableError: the scheduler does not answer, so nothing may be asked for a second time.
        """
        if not self.alive:
            return
        while True:
            known = {answer.comment: answer for answer in self._client.queued().values()}
            lost = [pilot for pilot in self.alive if pilot.job_id is None and pilot.token not in known]
            on_its_way = [pilot for pilot in lost if time.time() - pilot.submitted_s < LANDING_S]
            if not on_its_way:
                break
            time.sleep(1.0)
        for pilot in self.alive:
            self._take(pilot, known.get(pilot.token))
        self.leave([pilot for pilot in self.alive if not self._reports_here(pilot)])

    def _take(self, pilot: Pilot, answer: Answer | None) -> None:
        if answer is None and pilot.job_id is None:
            self._note(replace(pilot, ended_s=pilot.submitted_s, phase="ended", sentence="was never taken"))
        elif answer is not None and answer.state.phase == "ended":
            self._end(replace(pilot, job_id=answer.job_id), answer.state.sentence)
        elif answer is not None:
            self._note(replace(pilot, job_id=answer.job_id, phase=answer.state.phase))
            self._say(f"allocation {answer.job_id} of an earlier driver {answer.state.sentence}")

    def _reports_here(self, pilot: Pilot) -> bool:
        """Return whether a pilot has yet to start and will then find this driver."""
        return pilot.phase in ("queued", "stuck") and (pilot.host, pilot.port) == (self._host, self._port)

    def tick(self, wanted: int) -> None:
        """Ask how all stand, with one question and not too often, and ask for allocations until `wanted` are alive."""
        if time.monotonic() < self._due_s:
            return
        alive = [pilot for pilot in self.alive if pilot.job_id]
        states = self._poll.tick([pilot.submitted for pilot in alive])
        for pilot in alive:
            state = states[pilot.job_id or ""]
            if state.phase == "unknown":
                if self._poll.jobs_there is not None and self._client.forgotten(pilot.job_id or ""):
                    self._end(pilot, "has ended, and the scheduler has forgotten how")
                elif pilot.sentence != state.sentence:  # the phase stays the last that was known
                    self._note(replace(pilot, sentence=state.sentence))
                    self._say(f"allocation {pilot.job_id}: {state.sentence}")
            elif state.phase == "ended":
                self._end(pilot, state.sentence)
            else:
                waits = state.phase in ("queued", "stuck")
                waited_s = time.time() if waits else pilot.waited_s
                if (pilot.phase, pilot.sentence) != (state.phase, state.sentence):
                    self._say(f"allocation {pilot.job_id} {state.sentence}")
                    self._note(replace(pilot, phase=state.phase, sentence=state.sentence, waited_s=waited_s))
                elif waits:
                    self._replace(replace(pilot, waited_s=waited_s))
        while len(self.alive) < wanted and not self.problem and self._poll.jobs_there is not None:
            if not self._has_room() or not self._ask():
                break
        self._due_s = time.monotonic() + self._poll.pause_s

    def _has_room(self) -> bool:
        """Return whether the queue takes another job of this user's."""
        limit = self._study.site.slurm().queue(self._queue).jobs_max or 100
        return len(self.alive) < limit and (self._poll.jobs_there or 0) < limit

    def _ask(self) -> bool:
        """Ask for one allocation and return whether that worked; what cannot work later either is the problem."""
        walltime_s = self.affordable_s()
        if walltime_s <= self._study.site.slurm().warn_s:
            budget = self._study.file.pilots.node_hours
            self.problem = (
                f"pilots.node_hours={budget:g}: the rest of the budget is too little for {self.nodes} nodes"
            )
            return False
        token = f"isoflop-{secrets.token_hex(8)}"
        allocation = self.allocation(token, walltime_s)
        now_s = time.time()
        pilot = Pilot(token, allocation.name, self.nodes, walltime_s, now_s, self._host, self._port)
        self._note(pilot)  # first the token: should the answer be lost, the job can still be found
        try:
            script = render_allocation(allocation, self._study.site)
            pilot = replace(
                pilot, job_id=self._client.submit(script, token, self._study.directory.resolve() / ".pilots")
            )
        except RefusedError as error:
            self.problem = f"the scheduler takes no allocation: {error}"
            self._end(pilot, "was refused")
            return False
        except UnreachableError as error:
            self._say(f"{error}")
            return False
        self._note(pilot)
        self._say(f"asked for {self.nodes} nodes: allocation {pilot.job_id}")
        return True

    def affordable_s(self) -> int:
        """Return the walltime of the next allocation: the wanted one, or what the budget leaves of it."""
        wanted_s, budget = (
            walltime_of(self._study, self.nodes, self._queue),
            self._study.file.pilots.node_hours,
        )
        if budget is None:
            return wanted_s
        spent = sum(pilot.node_hours() for pilot in self.pilots)
        return min(wanted_s, int((budget - spent) * 3600 / self.nodes) // 60 * 60)

    def allocation(self, token: str, walltime_s: int) -> Allocation:
        """Return what is asked for."""
        exclude = bad_nodes(self._study.run_dir(run) for run in self._study.runs)
        return Allocation(
            name=f"{self._study.file.name}.pilot",
            node_count=self.nodes,
            walltime_s=walltime_s,
            argv=tuple(self._argv(token)),
            run_dir=self._study.directory.resolve(),
            python=Path(sys.executable),
            queue=self._queue,
            account=self._account,
            exclude=tuple(exclude),
            environment=capture(CAPTURED, dict(os.environ)),
        )

    def check(self) -> None:
        """Raise RefusedError with a sentence for each thing that would make an allocation fail."""
        walltime_s = self.affordable_s()
        if walltime_s < 60:
            return  # the first tick finds the budget spent
        allocation = self.allocation("", walltime_s)
        problems = preflight(allocation, self._study.site, os.environ, self._client, render_allocation)
        if problems:
            raise RefusedError("\n".join(problems))

    @property
    def ended(self) -> int:
        """How many have ended."""
        return len(self.pilots) - len(self.alive)

    def warn(self, pilots: list[Pilot]) -> None:
        """Tell the ranks of these allocations to commit what they have and end."""
        self._each(
            [pilot for pilot in pilots if pilot.job_id], lambda job_id: self._client.signal(job_id, "TERM")
        )

    def leave(
        self, pilots: list[Pilot], grace_s: float = 0.0, idle: Callable[[], bool] = lambda: True
    ) -> None:
        """Let the ranks of these allocations commit, wait up to `grace_s` until `idle()`, then end them."""
        there = [pilot for pilot in pilots if pilot.job_id]
        self.warn(there)
        deadline_s = time.monotonic() + grace_s
        while not idle() and time.monotonic() < deadline_s:
            time.sleep(0.2)
        self._each(there, self._client.cancel)
        for pilot in there:
            self._end(pilot, "was cancelled")

    def _each(self, pilots: list[Pilot], act: Callable[[str], None]) -> None:
        for pilot in pilots:
            try:
                act(pilot.job_id or "")
            except RefusedError:  # it has ended by itself, or has no ranks
                continue
            except UnreachableError as error:
                self._say(f"allocation {pilot.job_id} may go on: {error}")

    def _end(self, pilot: Pilot, sentence: str) -> None:
        """Write down that an allocation is over, and give up when too many are over without having done anything."""
        self.on_end(pilot)
        self._note(replace(pilot, phase="ended", sentence=sentence, ended_s=time.time()))
        self._say(f"allocation {pilot.job_id or pilot.token} {sentence}")
        attempts = self._count_attempts()
        self._fruitless = self._fruitless + 1 if attempts == self._attempts else 0
        self._attempts = attempts
        if self._fruitless >= FRUITLESS and not self.problem:
            self.problem = (
                f"{FRUITLESS} allocations in a row ended without starting a run; "
                f"see the newest log in {self._study.directory / '.pilots'}"
            )

    def _count_attempts(self) -> int:
        runs = (self._study.run_dir(run) for run in self._study.runs)
        return sum(len(run.attempts()) for run in runs if run.path.is_dir())

    def _note(self, pilot: Pilot) -> None:
        self._replace(pilot)
        text = json.dumps([asdict(held) for held in self.pilots], indent=1)
        write_private(self._study.directory / FILE, text + "\n")

    def _replace(self, pilot: Pilot) -> None:
        places = [index for index, held in enumerate(self.pilots) if held.token == pilot.token]
        if places:
            self.pilots[places[0]] = pilot
        else:
            self.pilots.append(pilot)


def walltime_of(study: Study, nodes: int, queue: str | None = None) -> int:
    """Return the walltime of an allocation as the study wishes it, else the longest that the queue grants."""
    wish = study.file.pilots.walltime
    return parse_walltime(wish) if wish else study.site.slurm().queue(queue).walltime_max_s(nodes)


def check_pilots(study: Study) -> int:
    """Return the nodes of an allocation. Raises ConfigError when the widest run has no room on them."""
    widest = max(study.runs, key=lambda run: nodes_of(run, study))
    needed, given = nodes_of(widest, study), study.file.pilots.nodes
    if given is not None and given < needed:
        raise ConfigError(f"pilots.nodes={given}: run {widest.id} takes {needed} nodes of {study.site.name}")
    return given or needed


def study_script(
    study: Study, file: Path, overrides: list[str], account: str | None, queue: str | None
) -> str:
    """Return the batch script of one allocation in which the driver runs a whole study. Touches nothing."""
    nodes = check_pilots(study)
    settings = [word for override in overrides for word in ("--set", override)]
    allocation = Allocation(
        name=f"{study.file.name}.study",
        node_count=nodes,
        walltime_s=walltime_of(study, nodes, queue),
        argv=(
            *(str(Path(sys.executable).parent / "isoflop"), "run", str(file.resolve())),
            *("--site", study.file.site, *settings),
        ),
        run_dir=(Path.cwd() / study.directory),
        directory=Path.cwd(),
        python=Path(sys.executable),
        queue=queue,
        account=account,
        environment=capture(CAPTURED, dict(os.environ)),
        restarts_max=3,
    )
    return render_allocation(allocation, study.site)
