"""Turns the file of a killed writer into one that every HDF5 tool opens."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from analysis.errors import StoreError
from analysis.store.reader import opened


def recover(path: Path, out: Path) -> int:
    """Copy every object of `path` into the new, closed file `out` and return the number of stream rows in it.

    The original is only read: `h5clear` and other repairs in place have been seen to lose what was still there.
    The copy is made in memory, so that `out` is written whole or reported.

    Raises:
        StoreError: `path` cannot be read, or `out` exists or cannot be written.
    """
    with h5py.File.in_memory() as clean:
        with opened(path) as damaged:
            for name in damaged:
                damaged.copy(name, clean)
        rows = sum(len(table) for table in clean.get("streams", {}).values())
        clean.flush()
        image = clean.id.get_file_image()
    try:
        with open(os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(image)
    except FileExistsError:
        raise StoreError(f"{out}: exists already; choose another name") from None
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror})") from None
    return rows
