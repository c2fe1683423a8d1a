"""The container `safetensors`: named tensors after a header, mapped, so that a rank reads only the rows that it takes.

Its own library would give numpy no bf16, and would be one more thing to install on every node for a format this small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.errors import CheckpointError

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file. `tensor[where]` reads that part of it, bf16 as fp32."""

    mapped: NDArray[Any]
    dtype: str
    """As the file names it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return self.mapped.shape

    def __getitem__(self, where: Any) -> NDArray[Any]:
        """Return a copy of a part."""
        part = np.array(self.mapped[where])
        return (part.astype("<u4") << 16).view("<f4") if self.dtype == "BF16" else part


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file: the header's length in 8 bytes, the header as JSON, then all data, little-endian."""
    codes = {np.dtype(dtype): code for code, dtype in _DTYPES.items() if code != "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        code = codes[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers lie where a reader may map them
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, none of them read. Raises CheckpointError for one that is damaged."""
    try:
        file = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(file[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(file[8:start].tobytes())
        header.pop("__metadata__", None)
        return {name: _tensor(file[start:], **entry) for name, entry in header.items()}
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def _tensor(data: NDArray[Any], dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    begin, end = data_offsets
    if not 0 <= begin <= end <= len(data):
        raise ValueError(f"bytes {begin} to {end} of {len(data)}")
    return Tensor(data[begin:end].view(_DTYPES[dtype]).reshape(shape), dtype)
