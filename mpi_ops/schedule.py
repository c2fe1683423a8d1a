"""Pipeline schedules as data: what each rank computes, and in which order; no torch, no MPI.

Every schedule is a few rows of (times, pattern). In a pattern, `F1` is the forward of the rank's second stage for
its next microbatch, `B` a whole backward, `I` a backward of the inputs only, and `W` the oldest backward of
weights that is still owed. A rank that runs its list in order, waiting for what comes from its neighbours, is done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from mpi_ops.errors import ScheduleError

Kind = Literal["F", "B", "I", "W"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to compute: `F3.0` is the forward of stage 3 for microbatch 0."""

    kind: Kind
    """F forward, B whole backward, I backward of the inputs only, W backward of the weights only."""
    stage: int
    """Place in the model, 0 to ranks * stages_per_rank - 1."""
    microbatch: int
    """Share of the batch, from 0."""

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.microbatch}"


def schedule(name: str, ranks: int, microbatches: int, stages_per_rank: int = 1) -> list[list[Action]]:
    """Return the actions of each rank, in order; any number of microbatches has a schedule.

    Raises:
        ScheduleError: no such schedule, a number below 1, or stages_per_rank that the schedule does not take.
    """
    stages = placement(name, ranks, stages_per_rank)
    _check_number("microbatches", microbatches)
    pattern = _RECIPES[name].pattern
    places = [_Place(rank, ranks, microbatches, stages_per_rank) for rank in range(ranks)]
    return [_actions(pattern(place), stages[place.rank], microbatches) for place in places]


def placement(name: str, ranks: int, stages_per_rank: int = 1) -> list[list[int]]:
    """Return the stages of each rank, in the order of the model.

    Raises:
        ScheduleError: no such schedule, a number below 1, or stages_per_rank that the schedule does not take.
    """
    if name not in _RECIPES:
        raise ScheduleError(f"schedule={name!r}: one of {', '.join(_RECIPES)}")
    _check_number("ranks", ranks)
    _check_number("stages_per_rank", stages_per_rank)
    recipe = _RECIPES[name]
    if not recipe.fewest_stages <= stages_per_rank <= (recipe.most_stages or stages_per_rank):
        takes = "exactly" if recipe.most_stages else "at least"
        raise ScheduleError(
            f"stages_per_rank={stages_per_rank}: schedule {name} takes {takes} {recipe.fewest_stages}"
        )
    if recipe.in_a_v:
        return [[rank, 2 * ranks - 1 - rank] for rank in range(ranks)]
    return [list(range(rank, ranks * stages_per_rank, ranks)) for rank in range(ranks)]


def _check_number(key: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ScheduleError(f"{key}={value!r}: a whole number of at least 1")


def _actions(pattern: list[str], stages: list[int], microbatches: int) -> list[Action]:
    """Number what a pattern counts: each stage takes its microbatches in order, on the way up and down.

    A pattern may be made for more microbatches. Leaving some out on every rank never blocks the others, since
    no action needs one of another microbatch.
    """
    begun: Counter[tuple[bool, int]] = Counter()
    owed: deque[Action] = deque()
    actions = []
    for step in pattern:
        if step == "W":
            actions.append(owed.popleft())
            continue
        kind, stage = cast(Kind, step[0]), stages[int(step[1:])]
        microbatch = begun[kind == "F", stage]
        begun[kind == "F", stage] += 1
        actions.append(Action(kind, stage, microbatch))
        if kind == "I":
            owed.append(Action("W", stage, microbatch))
    return [action for action in actions if action.microbatch < microbatches]


@dataclass(frozen=True, slots=True)
class _Place:
    """What a pattern depends on."""

    rank: int
    ranks: int
    microbatches: int
    stages_per_rank: int

    @property
    def after(self) -> int:
        """Number of ranks behind this one."""
        return self.ranks - 1 - self.rank


def _rows(*rows: tuple[int, str]) -> list[str]:
    """Return the steps of (times, pattern) rows, one after the other."""
    return [step for times, pattern in rows for _ in range(times) for step in pattern.split()]


def _gpipe(at: _Place) -> list[str]:
    return _rows((at.microbatches, "F0"), (at.microbatches, "B0"))


def _one_f_one_b(at: _Place) -> list[str]:
    microbatches = max(at.microbatches, at.ranks)
    return _rows((at.after, "F0"), (microbatches - at.after, "F0 B0"), (at.after, "B0"))


def _interleaved(at: _Place) -> list[str]:
    """Take groups of microbatches through one stage after the other.

    A group smaller than the number of ranks would stall or even block the pipeline, so what is left over is
    spread over the groups, the first one the largest: the bubble stays (ranks - 1) / (stages_per_rank *
    microbatches) for any number of at least `ranks` microbatches.
    """
    groups = max(1, at.microbatches // at.ranks)
    sizes = [at.microbatches // groups + (group < at.microbatches % groups) for group in range(groups)]
    stages = range(at.stages_per_rank)
    forwards = [f"F{stage}" for size in sizes for stage in stages for _ in range(size)]
    backwards = [f"B{stage}" for size in sizes for stage in reversed(stages) for _ in range(size)]
    ahead = min(len(forwards), (at.stages_per_rank - 1) * sizes[0] + 2 * at.after)
    pairs = zip(forwards[ahead:], backwards, strict=False)
    return [
        *forwards[:ahead],
        *(step for pair in pairs for step in pair),
        *backwards[len(backwards) - ahead :],
    ]


def _zero_bubble(at: _Place) -> list[str]:
    """Owe as many backwards of weights as there are ranks ahead: memory is level at that of rank 0 in 1F1B."""
    microbatches = max(at.microbatches, at.ranks)
    return _rows(
        (at.after, "F0"),
        (at.rank, "F0 I0"),
        (microbatches - at.ranks + 1, "F0 I0 W"),
        (at.after, "I0 W"),
        (at.rank, "W"),
    )


def _zbv(at: _Place) -> list[str]:
    microbatches = max(at.microbatches, 2 * at.ranks - 1)
    return _rows(
        (2 * at.after + 1, "F0"),
        (at.rank, "F1 F0"),
        (at.after + 1, "F1 I1 W"),
        (microbatches - at.ranks - at.after, "F0 I0 W F1 I1 W"),
        (at.after, "I0 W F1 I1 W"),
        (at.rank, "I0 I1"),
        (at.after + 1, "I0 W"),
        (2 * at.rank, "W"),
    )


def _dualpipev(at: _Place) -> list[str]:
    microbatches = max(at.microbatches, 2 * at.ranks)
    last = _rows((at.rank + 1, "B1 B0"))
    split = [step.replace("B", "I") for step in last[at.rank + 1 :]]
    return [
        *_rows((2 * at.after, "F0"), (at.rank + 1, "F0 F1"), (at.after, "I1 W F1")),
        *_rows((microbatches - at.ranks - at.after, "F0 B1 F1 B0"), (at.after, "B1 F1 B0")),
        *last[: at.rank + 1],
        *split,
        *_rows((at.after, "W I0"), (at.rank + 1, "W")),
    ]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """A schedule: its sentence, its pattern and the stages it wants on a rank (most_stages 0 = any number)."""

    says: str
    pattern: Callable[[_Place], list[str]]
    fewest_stages: int = 1
    most_stages: int = 1
    in_a_v: bool = False


_RECIPES = {
    "gpipe": _Recipe("All forwards, then all backwards; keeps every microbatch in memory.", _gpipe),
    "1f1b": _Recipe(
        "A backward after each forward, as soon as the first is back: gpipe's time, at most `ranks` in flight.",
        _one_f_one_b,
    ),
    "interleaved": _Recipe(
        "1f1b over several stages a rank, dealt round: the bubble shrinks by their number.",
        _interleaved,
        fewest_stages=2,
        most_stages=0,
    ),
    "zero_bubble": _Recipe(
        "ZB-H1 (arXiv 2401.10241): backwards of weights fill the bubble, in no more memory than 1f1b.",
        _zero_bubble,
    ),
    "zbv": _Recipe(
        "ZB-V (arXiv 2401.10241, section 6): two stages a rank in a V, so that the first rank holds the last stage.",
        _zbv,
        fewest_stages=2,
        most_stages=2,
        in_a_v=True,
    ),
    "dualpipev": _Recipe(
        "DualPipeV (after DeepSeek-V3, arXiv 2412.19437): zbv's stages, a forward beside each backward to overlap "
        "with it; at its best from 2 * ranks microbatches.",
        _dualpipev,
        fewest_stages=2,
        most_stages=2,
        in_a_v=True,
    ),
}
SCHEDULES = {name: recipe.says for name, recipe in _RECIPES.items()}
"""Name and one sentence of every schedule."""
