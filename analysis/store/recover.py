"""Turns the file of a killed writer, or one that was cut short, into one that every HDF5 tool opens."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from analysis.errors import StoreError
from analysis.store.reader import opened, whole_rows


def recover(path: Path, out: Path) -> int:
    """Copy every object of `path` into the new, closed file `out` and return the number of stream rows in it.

    Of a truncated file those rows are kept that come before the first lost one: HDF5 itself would copy zeros.

    The original is only read: `h5clear` and other repairs in place have been seen to lose what was still there.
    The copy is made in memory, so that `out` is written whole or reported.

    Raises:
        StoreError: `path` cannot be read, or `out` exists or cannot be written.
    """
    with h5py.File.in_memory() as clean:
        with opened(path) as damaged:
            for name in damaged:
                damaged.copy(name, clean)
            damaged.visititems(lambda name, found: _cut(path, found, clean, name))
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


def _cut(path: Path, found: h5py.Dataset | h5py.Group, clean: h5py.File, name: str) -> None:
    """Take from the copy of a table what the file does not hold; of one without chunks, all."""
    if not isinstance(found, h5py.Dataset) or (whole := whole_rows(path, found)) == len(found):
        return
    if found.chunks:
        clean[name].resize(whole, axis=0)
    else:
        del clean[name]
