"""The language-model program with the faults of RUN_DIR/faults.json in it, a list of {"kind", "rank", "step"}.

Each happens once, over all attempts, when that rank is about to do that step, and leaves RUN_DIR/fired-INDEX.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from mpi4py import MPI  # isort: skip  # noqa: F401  (MPI comes before torch)
from tests.faults import SLOW_S
from workflows.llm import program

ADVANCE = program.advance


def hang(_run: program.Training) -> None:
    """Go on no more, and heed no signal but the last."""
    while True:
        time.sleep(0.1)


def skip(run: program.Training) -> None:
    """Leave the step out that all others do, and go where they are not."""
    program.evaluate(run)


def slow(_run: program.Training) -> None:
    """Take long before the step."""
    time.sleep(SLOW_S)


def linger(_run: program.Training) -> None:
    """Take long before the next evaluation."""
    evaluate = program.evaluate

    def evaluate_late(run: program.Training) -> float:
        program.evaluate = evaluate
        time.sleep(SLOW_S)
        return evaluate(run)

    program.evaluate = evaluate_late


def boom(_run: program.Training) -> None:
    """Fail as a bug does."""
    raise ValueError("boom")


def signals(number: signal.Signals):
    """Return what sends a signal to this very rank."""
    return lambda _run: os.kill(os.getpid(), number)


KINDS = {
    "raise": boom,
    "kill": signals(signal.SIGKILL),
    "hang": hang,
    "skip": skip,
    "slow": slow,
    "linger": linger,
    "usr1": signals(signal.SIGUSR1),
    "term": signals(signal.SIGTERM),
}


def advance(run: program.Training) -> None:
    """Do what is due on this rank before a step, then the step."""
    place: Path = run.job.run.path
    for index, fault in enumerate(json.loads((place / "faults.json").read_text())):
        fired = place / f"fired-{index}"
        if (fault["rank"], fault["step"]) == (run.job.rank, run.step + 1) and not fired.exists():
            fired.touch()
            KINDS[fault["kind"]](run)
    ADVANCE(run)


if __name__ == "__main__":
    program.advance = advance
    sys.exit(program.main())
