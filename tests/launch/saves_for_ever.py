"""Save checkpoint after checkpoint into the directory named, and say each step that was committed, until killed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

from launch import checkpoint


def state(step: int) -> dict[str, np.ndarray]:
    """Return arrays that tell the step they belong to; some MB, so that a kill often meets a half-written file."""
    return {f"a{i}": np.full(100_000, step * 10 + i, np.float64) for i in range(3)}


def main() -> None:
    """Run until killed."""
    directory = Path(sys.argv[1])
    first = (checkpoint.steps(directory) or [0])[-1] + 1
    for step in itertools.count(first):
        checkpoint.save(directory, step, state(step), {"step": step})
        print(step, flush=True)


if __name__ == "__main__":
    main()
