"""Parsl's side of a site: which executor starts runs there, and how many cores they may fill together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parsl.config import Config
from parsl.executors import ThreadPoolExecutor

from slurm.site import Site


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


def parsl_config(site: Site, directory: Path) -> Config:
    """Return the Parsl configuration for a site; Parsl's own files go into `directory`.

    On a machine without a scheduler an app is a thread that waits for its `mpiexec`: runs of different
    widths then share the cores exactly, which equal worker slots cannot do.
    """
    runs = ThreadPoolExecutor(label=site.name, max_threads=site.usable_cores())
    return Config(
        executors=[runs],
        run_dir=str(directory),
        strategy="none",
        initialize_logging=False,
        usage_tracking=0,
    )
