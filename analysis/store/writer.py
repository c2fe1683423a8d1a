"""The one writer of a metrics file. A kill at any moment leaves every flushed row readable (HDF5's SWMR mode)."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from analysis.errors import StoreError
from analysis.store.schema import EVENT, ROW, SCHEMA, DistSpec, StreamSpec

FLUSH_EVERY_S = 2.0
FLUSH_ROWS = 256
CHUNK_BYTES = 8192
"""Small, since a scaling study writes many short files."""


class MetricsWriter:
    """Appends rows to a new file and flushes them by number and by time.

    Every object of the file is made in the constructor. Methods raise StoreError when the disk is full or the
    file is gone; rows flushed before stay readable.
    """

    def __init__(
        self,
        path: Path,
        *,
        meta: Mapping[str, str | int | float],
        streams: Sequence[StreamSpec],
        dists: Sequence[DistSpec] = (),
        summary: Sequence[str] = (),
    ) -> None:
        """Create `path`, which must not exist: opening an existing file would empty it, lock or not."""
        self.path = path
        self._started_s = self._flushed_s = time.monotonic()
        self._waiting: dict[str, list[tuple[object, ...]]] = {}
        self._n_waiting = 0
        self._failure: StoreError | None = None
        try:
            self._file = h5py.File(path, "x", libver="latest")
        except FileExistsError:
            raise StoreError(f"{path}: exists already; one attempt writes one file") from None
        except (OSError, RuntimeError) as error:
            raise StoreError(_sentence(path, error)) from None
        self._guarded(lambda: self._build(meta, streams, dists, summary))

    def append(self, stream: str, *, step: int, tokens: int, value: float) -> None:
        """Add a row to a stream."""
        self._add(f"streams/{stream}", (step, tokens, time.monotonic() - self._started_s, value))

    def event(self, kind: str, message: str, step: int = -1) -> None:
        """Add an event; a long message is cut to what the fixed-length field holds."""
        texts = (_cut(kind, EVENT["kind"].itemsize), _cut(message, EVENT["message"].itemsize))
        self._add("events", (time.monotonic() - self._started_s, step, *texts))

    def distribution(
        self,
        dist: str,
        *,
        step: int,
        low: float,
        median: float,
        high: float,
        slowest: NDArray[np.int32],
        counts: NDArray[np.int64],
    ) -> None:
        """Add one row of a distribution over ranks."""
        self._add(f"dist/{dist}", (step, low, median, high, slowest, counts))

    def set_summary(self, **fields: float) -> None:
        """Set fields of the summary that the constructor named."""
        row = self._file["summary"][0]
        for name, value in fields.items():
            row[name] = value
        self._guarded(lambda: self._file["summary"].__setitem__(0, row))
        self.flush()

    def flush(self) -> None:
        """Make all rows so far readable for others and safe from a kill."""
        self._guarded(self._write)
        self._flushed_s = time.monotonic()

    def close(self) -> None:
        """Flush and close."""
        if self._file:
            self.flush()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(
        self,
        meta: Mapping[str, str | int | float],
        streams: Sequence[StreamSpec],
        dists: Sequence[DistSpec],
        summary: Sequence[str],
    ) -> None:
        held = self._file.create_group("meta")
        for name, value in {"schema": SCHEMA, "started_unix_s": time.time(), **meta}.items():
            held.attrs[name] = value
        tables: list[tuple[str, np.dtype[np.void], dict[str, str | float]]]
        tables = [(f"streams/{s.name}", ROW, {"unit": s.unit, "description": s.description}) for s in streams]
        tables += [(f"dist/{d.name}", d.row, {"unit": d.unit, "low": d.low, "high": d.high}) for d in dists]
        tables.append(("events", EVENT, {}))
        for name, row, attributes in tables:
            table = self._file.create_dataset(
                name, (0,), row, maxshape=(None,), chunks=(max(1, CHUNK_BYTES // row.itemsize),)
            )
            table.attrs.update(attributes)
        fields = np.dtype([(name, "<f8") for name in summary])
        if summary:
            self._file.create_dataset("summary", (1,), fields)[0] = tuple(np.nan for _ in summary)
        self._file.swmr_mode = True
        os.chmod(self.path, 0o600)

    def _add(self, table: str, row: tuple[object, ...]) -> None:
        self._waiting.setdefault(table, []).append(row)
        self._n_waiting += 1
        if self._n_waiting >= FLUSH_ROWS or time.monotonic() - self._flushed_s > FLUSH_EVERY_S:
            self.flush()

    def _write(self) -> None:
        for name, rows in self._waiting.items():
            table = self._file[name]
            first = len(table)
            table.resize(first + len(rows), axis=0)
            table[first:] = np.array(rows, dtype=table.dtype)
            table.flush()
        self._waiting.clear()
        self._n_waiting = 0
        self._file.flush()

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._failure:
            raise self._failure
        try:
            action()
        except (OSError, RuntimeError, ValueError) as error:
            self._failure = StoreError(_sentence(self.path, error))
            self._let_go()
            raise self._failure from None

    def _let_go(self) -> None:
        """Close a file that takes no more rows, and leave it as the last flush did.

        HDF5 would try the failed writes again when it closes and when the process exits, and crash: from here on
        they lead nowhere.
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, self._file.id.get_vfd_handle())
        os.close(nowhere)
        with suppress(OSError, RuntimeError, ValueError):
            self._file.close()


def _cut(text: str, most_bytes: int) -> bytes:
    """Return the whole characters that fit into `most_bytes` of UTF-8."""
    return text.encode(errors="backslashreplace")[:most_bytes].decode(errors="ignore").encode()


def _sentence(path: Path, error: Exception) -> str:
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    told = re.search(r"error message = '([^']*)'", str(error))
    reason = told[1] if told else (str(error).splitlines() or [type(error).__name__])[0]
    return f"{path}: cannot be written ({reason}); {free:,} bytes are free there"
