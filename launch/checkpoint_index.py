"""The index of a checkpoint: where every piece stands, in JSON with its checksum, and what is refused in one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from operator import index as whole_number
from pathlib import Path
from typing import IO, Any

import numpy as np

from launch.errors import CheckpointError
from launch.pieces import Stored, by_name, check_whole
from launch.rundir import FILE_MODE

SCHEMA = "isoflop-checkpoint/2"
KINDS = "fiub"
"""NumPy kinds that may be stored: floats, integers, unsigned integers, booleans."""


class DamagedError(CheckpointError):
    """A checkpoint that is not whole: the one before it may be."""


def write_index(place: Path, step: int, meta: Mapping[str, Any], stored: list[Stored]) -> None:
    """Write the index of a checkpoint that lies at `place`. Raises OSError."""
    held = {"schema": SCHEMA, "step": step, "meta": meta, "pieces": [asdict(each) for each in stored]}
    body = json.dumps(held, allow_nan=False).encode()
    with new_file(place / "index.json") as file:
        file.write(body + b"\n" + sha256(body).encode() + b"\n")


def read_index(place: Path, step: int) -> tuple[list[Stored], dict[str, Any]]:
    """Return the entries and meta of one checkpoint after checking everything but the sums of the pieces."""
    path = place / "index.json"
    try:
        body, _, rest = path.read_bytes().partition(b"\n")
        if rest != sha256(body).encode() + b"\n":
            raise DamagedError(f"{path}: its checksum does not fit")
        held = json.loads(body)
        if held["schema"] != SCHEMA:
            raise DamagedError(f"{path}: schema is {held['schema']!r}, this reads {SCHEMA}")
        if held["step"] != step:
            raise DamagedError(f"{path}: holds step {held['step']}, its directory is named after another")
        stored = [_parse(entry) for entry in held["pieces"]]
        _check_files(place, stored)
        check_whole(by_name(stored))
        return stored, held["meta"]
    except OSError as error:
        raise DamagedError(f"{error.filename or place}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a checkpoint's index ({error})") from None
    except CheckpointError as error:
        raise error if isinstance(error, DamagedError) else DamagedError(f"{path}: {error}") from None


def _parse(entry: dict[str, Any]) -> Stored:
    shapes = {key: tuple(map(whole_number, entry[key])) for key in ("whole_shape", "offset", "shape")}
    return Stored(**{**entry, **shapes, "start": whole_number(entry["start"])})


def _check_files(place: Path, stored: list[Stored]) -> None:
    """See that each piece lies in a file of this checkpoint: a wrong index must not make a rank ask for memory."""
    sizes: dict[str, int] = {}
    for each in stored:
        path = place / each.file
        if each.file not in sizes:
            outside = path.parent != place or path.name == ".." or path.is_symlink()
            sizes[each.file] = -1 if outside else path.stat().st_size
        if sizes[each.file] < 0 or each.start < 0 or np.dtype(each.dtype).kind not in KINDS:
            raise DamagedError(f"{place / 'index.json'}: array '{each.name}' points outside the checkpoint")
        there = max(0, sizes[each.file] - each.start)
        if there < each.n_bytes:
            raise DamagedError(
                f"{path}: array '{each.name}' is cut off, {there} of {each.n_bytes} bytes are there"
            )


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256; of the standard library's sums that no damage escapes it was measured the fastest."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that was not there and that nobody else may read; once written to its end, it is durable."""
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
