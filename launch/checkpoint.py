"""Whole checkpoints without pickle: named arrays and JSON, checksummed, committed by a rename.

```
checkpoints/step-00000500/data-00000.bin    pieces one after the other, little-endian; a file for each node
                          data-00064.bin    ... named after the rank that writes it
                          index.json        where each stands, its dtype, shapes and SHA-256; last, its own
```
An array may be cut into pieces in any way: each says where in the whole it lies, so that ranks of another layout
find what they need. A directory without the rename, or with a wrong sum, is no checkpoint. Those of schema
isoflop-checkpoint/1, which knew no pieces, are refused.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from launch.agree import everywhere, on_root
from launch.checkpoint_index import DamagedError, read_index, sha256, write_index
from launch.errors import CheckpointError, LaunchError
from launch.pieces import Piece, Stored, Wanted, by_name, check_inside, check_whole, kind, overlap, whole
from launch.rundir import DIR_MODE, make_private
from launch.shared_file import describe, ranks_of_a_file, write_together

__all__ = ["Checkpoint", "NotSavedError", "Piece", "Saver", "Wanted", "load", "save", "steps", "whole"]

_NAME = re.compile(r"step-(\d{8,})")


class NotSavedError(CheckpointError):
    """A checkpoint could not be written; another attempt may find the room for it."""

    exit_code = 1


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


def save(
    comm: MPI.Intracomm,
    directory: Path,
    step: int,
    pieces: Iterable[Piece],
    meta: Mapping[str, Any],
    keep: int = 2,
    ranks_per_file: int | None = None,
) -> Path:
    """Commit a checkpoint of `step` and keep it and those before it, `keep` in all; return its directory.

    Every rank brings the pieces that it alone saves; `meta` is rank 0's. The ranks of a node share a file, or fewer
    when `ranks_per_file` says so. Everything is written and synced beside its place first: until the rename, the
    state before is the state. Checkpoints of later steps go: whoever saves an earlier one went back behind them.

    Raises, on every rank the same:
        CheckpointError: an array that is not plain numbers, or whose pieces do not fill it once.
        NotSavedError: a full disk or another failed write, after which the checkpoints before are as they were.

    Cost: each rank hashes its pieces and sends them to the first of its file, CHUNK_BYTES at a time and one rank
    after another; rank 0 gathers some 300 bytes a piece; 4 barriers, 2 all-reduces and 2 broadcasts.
    """
    final = _place(directory, step)
    beside = on_root(comm, lambda: _begin(final, meta))
    try:
        held = everywhere(comm, lambda: [describe(piece) for piece in pieces])
        with ranks_of_a_file(comm, ranks_per_file) as group:
            path = beside / f"data-{group.bcast(comm.rank):05d}.bin"

            def write() -> list[Stored]:
                with _writing(final):
                    return write_together(group, path, held)

            written = everywhere(comm, write)
        stored = [each for of_rank in comm.gather(written) or [] for each in of_rank]
        on_root(comm, lambda: _commit(beside, final, stored, meta, keep))
    finally:
        if comm.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
    return final


def load(
    comm: MPI.Intracomm, directory: Path, wanted: Mapping[str, Wanted] | None = None
) -> Checkpoint | None:
    """Return the newest whole checkpoint, None when none was ever committed; every rank returns the same step.

    `wanted` says what this rank needs; None stands for every array, uncut.

    Raises, on every rank the same:
        CheckpointError: there are some and all are damaged; the sentence names the newest one's fault. Or the
            newest whole one holds other arrays than some rank wants: it is another model's.

    Cost: rank 0 reads the index, and broadcasts it; each rank reads and hashes the pieces that overlap what it wants,
    each to its end; 3 barriers, 2 all-reduces and a broadcast for each checkpoint looked at.
    """
    skipped: list[str] = []
    for step in on_root(comm, lambda: _newest_first(directory)):
        try:
            arrays, meta = _load_step(comm, _place(directory, step), step, wanted)
            return Checkpoint(step, arrays, meta, skipped)
        except DamagedError as error:
            skipped.append(str(error))
    if skipped:
        raise CheckpointError(f"{skipped[0]}; no older checkpoint is whole")
    return None


class Saver:
    """Saves while the program goes on, one checkpoint at a time. Every rank makes one and calls the same methods.

    `comm` is a duplicate that nothing else uses. Without `beside`, or where this MPI lets no threads in, `start` saves
    before it returns, and copies nothing.
    """

    def __init__(self, comm: MPI.Intracomm, directory: Path, keep: int = 2, beside: bool = True) -> None:
        self._comm, self._directory, self._keep = comm, directory, keep
        self._beside = beside and MPI.Query_thread() >= MPI.THREAD_MULTIPLE
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None

    def start(self, step: int, pieces: Sequence[Piece], meta: Mapping[str, Any]) -> None:
        """Copy the arrays, once the save before has ended, and begin to save them.

        Raises:
            CheckpointError: the save before went wrong, or this one where it is over already; on every rank the same.

        Cost: a copy of the pieces and an all-reduce of one number here; that of `save` in a thread.
        """
        self.wait()
        if not self._beside:
            save(self._comm, self._directory, step, pieces, meta, self._keep)
            return
        snapshot = everywhere(self._comm, lambda: [replace(each, array=each.array.copy()) for each in pieces])
        self._thread = threading.Thread(target=self._save, args=(step, snapshot, copy.deepcopy(meta)))
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong with a save that has ended; ranks may hear of it at different calls. Waits for none."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def close(self) -> None:
        """Wait, and free the communicator. Raises what `wait` raises."""
        self.wait()
        self._comm.Free()

    def wait(self) -> None:
        """Return once nothing is being saved. Raises what `save` raises, on every rank the same."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def _save(self, step: int, pieces: list[Piece], meta: Mapping[str, Any]) -> None:
        try:
            save(self._comm, self._directory, step, pieces, meta, self._keep)
        except Exception as error:
            self._fault = error


def _place(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


@contextmanager
def _writing(final: Path) -> Iterator[None]:
    """Turn a failed write into the one sentence that a user needs."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(final.parent).free if final.parent.is_dir() else 0
        raise NotSavedError(f"{final}: {error.strerror}; {free:,} bytes are free there") from None


def _begin(final: Path, meta: Mapping[str, Any]) -> Path:
    """Clear what a kill left and return a new directory beside `final`."""
    json.dumps(meta, allow_nan=False)  # before any rank writes in vain
    try:
        make_private(final.parent)
    except LaunchError as error:
        raise NotSavedError(str(error)) from None
    with _writing(final):
        _put_back(final.parent)
        for stale in final.parent.glob(".step-*"):
            shutil.rmtree(stale)
        beside = final.parent / f".{final.name}.{os.getpid()}"
        beside.mkdir(mode=DIR_MODE)
    return beside


def _put_back(directory: Path) -> None:
    """Give a checkpoint its name back that lost it to its own successor, when a kill kept that from taking it."""
    for replaced in directory.glob(".step-*.replaced"):
        final = directory / replaced.name.removeprefix(".").removesuffix(".replaced")
        if not final.exists():
            replaced.rename(final)


def _commit(beside: Path, final: Path, stored: list[Stored], meta: Mapping[str, Any], keep: int) -> None:
    """Write the index, give the directory its name, and let go of checkpoints that are no longer kept."""
    check_whole(by_name(stored))
    directory, step = final.parent, int(final.name.removeprefix("step-"))
    replaced = directory / f".{final.name}.replaced"
    with _writing(final):
        write_index(beside, step, meta, stored)
        _sync(beside)
        if final.exists():
            final.rename(replaced)
        beside.rename(final)
        _sync(directory)
        shutil.rmtree(replaced, ignore_errors=True)
        kept = [each for each in steps(directory) if each <= step][-keep:]
        for old in set(steps(directory)).difference(kept):
            shutil.rmtree(_place(directory, old))


def _newest_first(directory: Path) -> list[int]:
    try:
        _put_back(directory)
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror}") from None
    return steps(directory)[::-1]


def _load_step(
    comm: MPI.Intracomm, place: Path, step: int, wanted: Mapping[str, Wanted] | None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    stored, meta = on_root(comm, lambda: read_index(place, step))
    held = by_name(stored)
    boxes = _everything(held) if wanted is None else wanted
    everywhere(comm, lambda: _check_wanted(place, held, boxes))
    return everywhere(comm, lambda: _assemble(place, held, boxes)), meta


def _everything(held: Mapping[str, list[Stored]]) -> dict[str, Wanted]:
    firsts = {name: pieces[0] for name, pieces in held.items()}
    return {
        name: Wanted(
            first.whole_shape, (0,) * len(first.whole_shape), first.whole_shape, np.dtype(first.dtype)
        )
        for name, first in firsts.items()
    }


def _check_wanted(place: Path, held: Mapping[str, list[Stored]], wanted: Mapping[str, Wanted]) -> None:
    """See that the checkpoint holds arrays of the wanted names, dtypes and whole shapes."""
    for name, want in wanted.items():
        check_inside(name, want.whole_shape, want.offset, want.shape)
        if name not in held:
            raise CheckpointError(f"{place}: the checkpoint holds no array '{name}'")
        there = kind(held[name][0].dtype, held[name][0].whole_shape)
        if there != (here := kind(want.dtype, want.whole_shape)):
            raise CheckpointError(f"array '{name}' is {there} in the checkpoint, {here} in this model")


def _assemble(
    place: Path, held: Mapping[str, list[Stored]], wanted: Mapping[str, Wanted]
) -> dict[str, NDArray[Any]]:
    """Return the wanted arrays, put together from the pieces that overlap them."""
    dtypes = {name: np.dtype(held[name][0].dtype) for name in wanted}
    # Moved as plain bytes: a copy of numbers may leave out what is no part of their value, as in a long double.
    arrays = {name: np.empty(want.shape, f"V{dtypes[name].itemsize}") for name, want in wanted.items()}
    needed = [
        (each, parts)
        for name, want in wanted.items()
        for each in held[name]
        if (parts := overlap(each, want)) is not None
    ]
    needed.sort(key=lambda item: (item[0].file, item[0].start))
    for file, of_file in groupby(needed, lambda item: item[0].file):
        try:
            with (place / file).open("rb") as opened:
                for stored, (here, there) in of_file:
                    opened.seek(stored.start)
                    raw = np.empty(stored.n_bytes, np.uint8)
                    if opened.readinto(raw.data) < raw.nbytes or sha256(raw.data) != stored.sha256:
                        raise DamagedError(
                            f"{place / file}: array '{stored.name}' is damaged, its checksum does not fit"
                        )
                    piece = raw.view(arrays[stored.name].dtype).reshape(stored.shape)
                    arrays[stored.name][there] = piece[here]
        except OSError as error:
            raise DamagedError(f"{place / file}: {error.strerror}") from None
    return {name: array.view(dtypes[name]) for name, array in arrays.items()}


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
