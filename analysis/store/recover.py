"""Turns the file of a killed writer into one that every HDF5 tool opens."""

from __future__ import annotations

from pathlib import Path

import h5py

from analysis.errors import StoreError
from analysis.store.reader import opened


def recover(path: Path, out: Path) -> int:
    """Copy every object of `path` into the new, closed file `out` and return the number of stream rows in it.

    The original is only read: `h5clear` and other repairs in place have been seen to lose what was still there.

    Raises:
        StoreError: `path` cannot be read, or `out` exists.
    """
    try:
        with opened(path) as damaged, h5py.File(out, "x") as clean:
            for name in damaged:
                damaged.copy(name, clean)
            return sum(len(table) for table in clean.get("streams", {}).values())
    except FileExistsError:
        raise StoreError(f"{out}: exists already; choose another name") from None
