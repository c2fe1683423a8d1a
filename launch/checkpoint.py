"""Whole checkpoints without pickle: named arrays and JSON, checksummed, committed by a rename.

```
checkpoints/step-00000500/data-00000.bin    arrays one after the other, little-endian
                          index.json        where each stands, its dtype, shapes and SHA-256; last, its own
```
An array is a piece of a logical tensor: `global_shape` and `offset` say which, so that another layout can put
the pieces together. A directory without the rename, or with a wrong sum, is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.errors import CheckpointError, LaunchError
from launch.rundir import DIR_MODE, FILE_MODE, make_private

SCHEMA = "isoflop-checkpoint/1"
KINDS = "fiub"
"""NumPy kinds that may be stored: floats, integers, unsigned integers, booleans."""
_NAME = re.compile(r"step-(\d{8,})")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint. `skipped` names newer ones that were damaged, and how; a caller must tell them."""

    step: int
    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    skipped: list[str] = field(default_factory=list)


def steps(directory: Path) -> list[int]:
    """Return the steps of all committed checkpoints, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(found[1]) for entry in os.listdir(directory) if (found := _NAME.fullmatch(entry)))


def save(directory: Path, step: int, arrays: Arrays, meta: Mapping[str, Any], keep: int = 2) -> Path:
    """Commit a checkpoint of `step` and keep it and those before it, `keep` in all; return its directory.

    Everything is written and synced beside its place first: until the rename, the state before is the state.
    Checkpoints of later steps go: whoever saves an earlier one went back behind them.

    Raises:
        CheckpointError: an array that is not plain numbers.
        LaunchError: a full disk or another failed write, after which the checkpoints before are as they were.
    """
    final = _place(directory, step)
    beside, replaced = directory / f".step-{step:08d}.{os.getpid()}", directory / f".step-{step:08d}.replaced"
    try:
        make_private(directory)
        for stale in directory.glob(".step-*"):
            shutil.rmtree(stale)
        beside.mkdir(mode=DIR_MODE)
        entries = _write_arrays(beside / "data-00000.bin", arrays)
        body = json.dumps({"schema": SCHEMA, "step": step, "meta": meta, "arrays": entries}, allow_nan=False)
        _write(beside / "index.json", [body.encode(), b"\n", _sum(body.encode()).encode(), b"\n"])
        _sync(beside)
        if final.exists():
            final.rename(replaced)
        beside.rename(final)
        _sync(directory)
        shutil.rmtree(replaced, ignore_errors=True)
        kept = [held for held in steps(directory) if held <= step][-keep:]
        for old in set(steps(directory)).difference(kept):
            shutil.rmtree(_place(directory, old))
    except OSError as error:
        free = shutil.disk_usage(directory).free if directory.is_dir() else 0
        raise LaunchError(f"{final}: {error.strerror}; {free:,} bytes are free there") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return final


def load(directory: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, None when none was ever committed.

    Raises:
        CheckpointError: there are some and all are damaged; the sentence names the newest one's fault.
    """
    skipped: list[str] = []
    for step in reversed(steps(directory)):
        try:
            arrays, meta = _read(_place(directory, step), step)
            return Checkpoint(step, arrays, meta, skipped)
        except CheckpointError as error:
            skipped.append(str(error))
    if skipped:
        raise CheckpointError(f"{skipped[0]}; no older checkpoint is whole")
    return None


def _place(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def _write_arrays(path: Path, arrays: Arrays) -> dict[str, dict[str, Any]]:
    """Write the arrays into one file and return the index entry of each."""
    entries, pieces, start = {}, [], 0
    for name, array in arrays.items():
        if array.dtype.kind not in KINDS:
            raise CheckpointError(f"array '{name}' is of type {array.dtype}; a checkpoint holds numbers only")
        piece = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        entries[name] = {
            "file": path.name,
            "start": start,
            "dtype": array.dtype.newbyteorder("<").str,
            "shape": list(array.shape),
            "global_shape": list(array.shape),
            "offset": [0] * array.ndim,
            "sha256": _sum(piece.data),
        }
        pieces.append(piece.data)
        start += piece.nbytes
    _write(path, pieces)
    return entries


def _read(place: Path, step: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return arrays and meta of one checkpoint after checking every sum. Raises CheckpointError."""
    index = place / "index.json"
    try:
        body, _, rest = index.read_bytes().partition(b"\n")
        if rest != _sum(body).encode() + b"\n":
            raise CheckpointError(f"{index}: its checksum does not fit")
        held = json.loads(body)
        if held["schema"] != SCHEMA:
            raise CheckpointError(f"{index}: schema is {held['schema']!r}, this reads {SCHEMA}")
        if held["step"] != step:
            raise CheckpointError(f"{index}: holds step {held['step']}, its directory is named after another")
        arrays = {name: _read_array(place, name, entry) for name, entry in held["arrays"].items()}
        return arrays, held["meta"]
    except OSError as error:
        raise CheckpointError(f"{error.filename or place}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not a checkpoint's index ({error})") from None


def _read_array(place: Path, name: str, entry: dict[str, Any]) -> NDArray[Any]:
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    path, n_bytes = place / entry["file"], dtype.itemsize * prod(shape)
    if (
        path.parent != place
        or path.name == ".."
        or path.is_symlink()
        or dtype.kind not in KINDS
        or min((0, *shape, entry["start"])) < 0
    ):
        raise CheckpointError(f"{place / 'index.json'}: array '{name}' points outside the checkpoint")
    there = max(0, path.stat().st_size - entry["start"])
    if there < n_bytes:  # looked at first: a wrong index must not make this process ask for memory
        raise CheckpointError(f"{path}: array '{name}' is cut off, {there} of {n_bytes} bytes are there")
    with path.open("rb") as file:
        file.seek(entry["start"])
        raw = file.read(n_bytes)
    if _sum(raw) != entry["sha256"]:
        raise CheckpointError(f"{path}: array '{name}' is damaged, its checksum does not fit")
    return np.frombuffer(raw, dtype).reshape(shape)


def _sum(data: bytes | memoryview) -> str:
    """Return the SHA-256; of the standard library's sums that no damage escapes it was measured the fastest."""
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, pieces: list[Any]) -> None:
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE), "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
