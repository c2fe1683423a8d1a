"""Reads metrics files: finished, live, or left behind by a kill; and merges the attempts of a run into one."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from analysis.errors import StoreError
from analysis.store.schema import EVENT, ROW, SCHEMA

METADATA_READS = 24
"""Attempts at one piece of metadata; the waits between them add up to 2^24 ns."""
Rows = NDArray[np.void]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AttemptMetrics:
    """All that one file holds: streams and distributions by name, meta, events, and the summary's set fields."""

    path: Path
    meta: dict[str, Any]
    streams: dict[str, Rows]
    dists: dict[str, Rows]
    events: Rows
    summary: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """The attempts of a run as one history; `damaged` says which files could not be read, and why."""

    meta: dict[str, Any]
    streams: dict[str, Rows]
    clocks: dict[str, Floats]
    """Unix seconds of each row of each stream: `time` counts from the beginning of the row's own attempt."""
    events: Rows
    summary: dict[str, float]
    attempts: list[int]
    damaged: list[str] = field(default_factory=list)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Yield an open metrics file.

    A file whose writer lives or was killed opens in SWMR mode only; one that was closed opens either way.

    Raises:
        StoreError: missing, not HDF5, damaged, or of another schema.
    """
    try:
        with h5py.File(_open_swmr(path)) as file:
            schema = file["meta"].attrs["schema"]
            if schema != SCHEMA:
                raise StoreError(f"{path}: schema is {schema!r}, this reads {SCHEMA}")
            yield file
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"{path}: cannot be read as {SCHEMA} ({reason})") from None


def _open_swmr(path: Path) -> h5py.h5f.FileID:
    """Return `path` opened for SWMR reading, with few attempts at metadata that does not match its checksum.

    By default HDF5 makes a hundred and waits twice as long before each: a truncated file would hang its reader for
    good. h5py has no name for the setting, so it is asked of the very library that h5py is linked to.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    library = ctypes.CDLL(h5py.h5p.__file__)
    library.H5Pset_metadata_read_attempts(ctypes.c_int64(access.id), ctypes.c_uint(METADATA_READS))
    return h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ, access)


def read_attempt(path: Path) -> AttemptMetrics:
    """Return all that one metrics file holds now. Raises StoreError."""
    with opened(path) as file:
        summary = _rows(path, file["summary"])[0] if "summary" in file else np.zeros((), dtype=[])
        return AttemptMetrics(
            path,
            {name: _plain(value) for name, value in file["meta"].attrs.items()},
            {name: _rows(path, table) for name, table in file.get("streams", {}).items()},
            {name: _rows(path, table) for name, table in file.get("dist", {}).items()},
            _rows(path, file["events"]) if "events" in file else np.empty(0, EVENT),
            {name: float(summary[name]) for name in summary.dtype.names or () if not np.isnan(summary[name])},
        )


def read_last(path: Path, *streams: str) -> dict[str, Any]:
    """Return the last row of each of `streams` that has one; cheap enough to ask every second. Raises StoreError."""
    with opened(path) as file:
        tables = {name: file["streams"].get(name) for name in streams}
        return {name: table[-1] for name, table in tables.items() if table is not None and len(table)}


def read_run(directory: Path) -> RunMetrics:
    """Return the merged history of the run in `directory`.

    A later attempt that went on from step r replaces all rows after r: what an earlier one did beyond its last
    checkpoint was lost with it. A file that cannot be read is named in `damaged` and left out.

    Raises:
        StoreError: no attempt has a readable file.
    """
    attempts: list[AttemptMetrics] = []
    numbers, damaged = [], []
    for number, path in sorted(_attempt_files(directory)):
        try:
            attempts.append(read_attempt(path))
            numbers.append(number)
        except StoreError as error:
            damaged.append(str(error))
    if not attempts:
        raise StoreError(damaged[0] if damaged else f"{directory}: holds no attempt-NNN.h5")
    streams: dict[str, Rows] = {}
    clocks: dict[str, Floats] = {}
    for attempt in attempts:
        restored, began_s = attempt.meta.get("restore_step", 0), attempt.meta["started_unix_s"]
        for name, rows in streams.items():
            kept = rows["step"] <= restored
            streams[name], clocks[name] = rows[kept], clocks[name][kept]
        for name, rows in attempt.streams.items():
            streams[name] = np.concatenate([streams.get(name, np.empty(0, ROW)), rows])
            clocks[name] = np.concatenate([clocks.get(name, np.empty(0)), began_s + rows["time"]])
    summaries = [attempt.summary for attempt in attempts if attempt.summary]
    return RunMetrics(
        attempts[-1].meta,
        streams,
        clocks,
        np.concatenate([attempt.events for attempt in attempts]),
        summaries[-1] if summaries else {},
        numbers,
        damaged,
    )


def _rows(path: Path, table: h5py.Dataset) -> Rows:
    """Return all rows of a table. Raises StoreError when the file ends before them: HDF5 itself would read zeros."""
    rows: Rows = table[:]
    whole = whole_rows(path, table)
    if whole < len(rows):
        raise StoreError(
            f"{path}: is truncated: {table.name} has {len(rows):,} rows, {whole:,} of them within the file's "
            f"{path.stat().st_size:,} bytes; `isoflop recover {path} NEW.h5` copies what is whole"
        )
    return rows


def whole_rows(path: Path, table: h5py.Dataset) -> int:
    """Return how many rows of a table come before the first that lies beyond the end of the file."""
    held_bytes, first_lost = path.stat().st_size, [len(table)]
    if table.chunks:

        def note(chunk: Any) -> None:
            if chunk.byte_offset + chunk.size > held_bytes:
                first_lost.append(chunk.chunk_offset[0])

        table.id.chunk_iter(note)
    elif (table.id.get_offset() or 0) + table.nbytes > held_bytes:
        first_lost.append(0)
    return min(first_lost)


def _attempt_files(directory: Path) -> Iterator[tuple[int, Path]]:
    """Yield (number, path) of every attempt's file; other names, such as a recovered copy's, are none of ours."""
    for path in directory.glob("attempt-*.h5"):
        match = re.fullmatch(r"attempt-(\d{3,})", path.stem)
        if match:
            yield int(match[1]), path


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
