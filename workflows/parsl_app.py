"""What Parsl's workers do on the first node of an allocation: start one attempt on the nodes that they were lent."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

from launch.attempt import Step, run_attempt
from launch.rundir import RunDir


def attempt_on_nodes(path: str, step: Step, parsl_resource_specification: dict[str, int]) -> None:  # noqa: ARG001
    """Bring one attempt of the run in `path` to its end. How it ended stands in that directory.

    Parsl reads how many nodes to lend from its last argument.
    """
    nodes = os.environ["PARSL_MPI_NODELIST"]
    run_attempt(
        RunDir(Path(path)), replace(step, options=(*step.options, f"--nodelist={nodes}")), threading.Event()
    )
