"""A process that writes metrics: `PATH endless` until it is killed, `PATH full` until the disk is full."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from analysis.errors import StoreError
from analysis.store import DistSpec, MetricsWriter, StreamSpec, read_attempt

STREAMS = [StreamSpec("train_loss", "nat/token", "of the batch"), StreamSpec("lr", "", "learning rate")]
DIST = DistSpec("step_time", "s")


def writer(path: Path, attempt: int = 1, restore_step: int = 0, **more: str) -> MetricsWriter:
    meta = {"attempt": attempt, "restore_step": restore_step, **more}
    return MetricsWriter(path, meta=meta, streams=STREAMS, dists=[DIST], summary=["L_val", "wall_s"])


def add(metrics: MetricsWriter, step: int) -> None:
    metrics.append("train_loss", step=step, tokens=10 * step, value=1 / step)
    metrics.append("lr", step=step, tokens=10 * step, value=float(step))


def endless(path: Path) -> None:
    """Print the last step of every flush after it was made."""
    with writer(path) as metrics:
        for step in range(1, sys.maxsize):
            add(metrics, step)
            if step % 7 == 0:
                metrics.flush()
                print(step, flush=True)


def full(path: Path) -> None:
    """Print the error, the last step before it, and how many rows are there then."""
    if path.parent != Path("/mnt"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    flushed = 0
    try:
        with writer(path) as metrics:
            for step in range(1, 100_000):
                add(metrics, step)
                if step % 100 == 0:
                    metrics.flush()
                    flushed = step
    except StoreError as error:
        rows = read_attempt(path).streams["lr"]["step"].tolist()
        print(json.dumps({"error": str(error), "flushed": flushed, "rows": rows}))


if __name__ == "__main__":
    {"endless": endless, "full": full}[sys.argv[2]](Path(sys.argv[1]))
