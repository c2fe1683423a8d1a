"""Hold a pipeline schedule to its promises without running it: is it complete, does it end, when, in what memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mpi_ops.errors import ScheduleError
from mpi_ops.schedule import KINDS, Action

Lists = list[list[Action]]
Stages = list[list[int]]


@dataclass(frozen=True, slots=True)
class Timing:
    """How a schedule goes: when the last rank is done, and what each rank does and holds until then."""

    makespan_s: float
    busy_s: tuple[float, ...]
    """Computing, by rank."""
    peak_in_flight: tuple[int, ...]
    """Most (stage, microbatch) whose F is done and whose B, or W where it is split, is not; by rank."""
    peak_until_inputs: tuple[int, ...]
    """The same where I already lets go of what F kept; by rank."""

    @property
    def bubble(self) -> float:
        """Time spent waiting by the busiest rank, as a share of the time it computes."""
        return self.makespan_s / max(self.busy_s) - 1


def simulate(
    schedule: Lists, placement: Stages, forward_s: float = 1, backward_s: float = 2, hop_s: float = 0
) -> Timing:
    """Return how the schedule goes when each rank starts an action once its inputs are there.

    `forward_s` and `backward_s` are for one stage and one microbatch, I and W each take half of the backward, and
    `hop_s` passes between two ranks' stages.

    Raises:
        ScheduleError: an action stands on another rank than its stage, or ranks wait for each other for ever.
    """
    cost_s = _cost_s(forward_s, backward_s)
    ends_s = _ends_s(schedule, placement, cost_s, hop_s)
    return Timing(
        makespan_s=max((ends[-1] for ends in ends_s if ends), default=0),
        busy_s=tuple(sum(cost_s[action.kind] for action in actions) for actions in schedule),
        peak_in_flight=tuple(_peak(actions, "BW") for actions in schedule),
        peak_until_inputs=tuple(_peak(actions, "BI") for actions in schedule),
    )


def check(schedule: Lists, placement: Stages, microbatches: int) -> None:
    """Do nothing if every stage takes every microbatch forward and back exactly once, and the schedule ends.

    Raises:
        ScheduleError: the first action that is missing, repeated or out of place, or what each rank waits for.
    """
    _check_places(schedule, placement)
    found = Counter(action for actions in schedule for action in actions)
    for action in found:
        if action.microbatch not in range(microbatches):
            raise ScheduleError(f"{action}: the microbatches are 0 to {microbatches - 1}")
    for stage in sorted(stage for stages in placement for stage in stages):
        for microbatch in range(microbatches):
            kinds = "".join(kind * found[Action(kind, stage, microbatch)] for kind in KINDS)
            if kinds not in ("FB", "FIW"):
                raise ScheduleError(
                    f"stage {stage}, microbatch {microbatch}: has {' '.join(kinds) or 'nothing'}, "
                    "but F B or F I W is one way there and back"
                )
    simulate(schedule, placement)


def render(schedule: Lists, placement: Stages) -> str:
    """Return the schedule as text: a row a rank, a column a unit of time; B fills two, a point is waiting.

    Raises:
        ScheduleError: as `simulate` does.
    """
    cost = _cost_s(1, 2)
    ends = _ends_s(schedule, placement, cost, 0)
    columns = int(max((row[-1] for row in ends if row), default=0))
    width = max((len(str(action)) for actions in schedule for action in actions), default=1)
    digits = len(str(len(schedule) - 1))
    lines = []
    for rank, actions in enumerate(schedule):
        cells = ["."] * columns
        for action, end in zip(actions, ends[rank], strict=True):
            begin = int(end - cost[action.kind])
            cells[begin : int(end)] = [str(action), "-" * width][: int(end) - begin]
        row = " ".join(f"{cell:<{width}}" for cell in cells)
        lines.append(f"rank {rank:<{digits}} | {row}")
    return "\n".join(line.rstrip() for line in lines)


def _cost_s(forward_s: float, backward_s: float) -> dict[str, float]:
    return {"F": forward_s, "B": backward_s, "I": backward_s / 2, "W": backward_s / 2}


def _ends_s(schedule: Lists, placement: Stages, cost_s: dict[str, float], hop_s: float) -> list[list[float]]:
    """Return when each action of each rank ends."""
    rank_of = _check_places(schedule, placement)
    end_s: dict[Action, float] = {}
    ends_s: list[list[float]] = [[] for _ in schedule]
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule):
            while len(ends_s[rank]) < len(actions):
                action = actions[len(ends_s[rank])]
                needs = _needs(action, len(rank_of))
                if needs is not None and needs not in end_s:
                    break
                ready_s = 0.0 if needs is None else end_s[needs] + hop_s * (rank_of[needs.stage] != rank)
                begin_s = max(ready_s, ends_s[rank][-1] if ends_s[rank] else 0.0)
                ends_s[rank].append(begin_s + cost_s[action.kind])
                end_s[_result(action)] = ends_s[rank][-1]
                moved = True
    _check_ended(schedule, [len(ends) for ends in ends_s], len(rank_of))
    return ends_s


def _needs(action: Action, n_stages: int) -> Action | None:
    """Return what must be done before, beside what stands earlier on the rank; a gradient comes from an I or a B."""
    if action.kind == "W":
        return Action("I", action.stage, action.microbatch)
    if action.kind == "F":
        return Action("F", action.stage - 1, action.microbatch) if action.stage > 0 else None
    if action.stage == n_stages - 1:
        return Action("F", action.stage, action.microbatch)
    return Action("I", action.stage + 1, action.microbatch)


def _result(action: Action) -> Action:
    """Return `action`, a B as the I it contains."""
    return Action("I", action.stage, action.microbatch) if action.kind == "B" else action


def _check_places(schedule: Lists, placement: Stages) -> dict[int, int]:
    """Return the rank of each stage of a sound placement that the schedule keeps to."""
    rank_of = {stage: rank for rank, stages in enumerate(placement) for stage in stages}
    held = sorted(stage for stages in placement for stage in stages)
    if held != list(range(len(held))):
        raise ScheduleError(f"placement {placement}: each stage from 0 on, on exactly one rank")
    if len(schedule) != len(placement):
        raise ScheduleError(f"schedule of {len(schedule)} ranks: the placement has {len(placement)}")
    for rank, actions in enumerate(schedule):
        for action in actions:
            if action.kind not in KINDS or action.stage not in placement[rank]:
                stages = ", ".join(map(str, placement[rank]))
                raise ScheduleError(f"rank {rank}, {action}: one of {', '.join(KINDS)} on stages {stages}")
    return rank_of


def _check_ended(schedule: Lists, done: list[int], n_stages: int) -> None:
    blocked = [
        f"rank {rank} at {actions[n]} for {_needs(actions[n], n_stages)}"
        for rank, (actions, n) in enumerate(zip(schedule, done, strict=True))
        if n < len(actions)
    ]
    if blocked:
        raise ScheduleError(f"deadlock, waiting for ever: {'; '.join(blocked)}")


def _peak(actions: list[Action], released_by: str) -> int:
    held = peak = 0
    for action in actions:
        held += (action.kind == "F") - (action.kind in released_by)
        peak = max(peak, held)
    return peak
