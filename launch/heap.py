"""What becomes of memory that a rank's program frees: glibc decides by the sizes that it has seen, if it is not told.

With another C library both functions do nothing.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of settings in malloc.h."""
MIB = 1 << 20


def keep() -> None:
    """Keep up to a GiB of freed memory at hand for whoever asks next; arrays of 32 MiB, glibc's limit, still go.

    A training step frees what the next one takes again. Left alone, glibc gives some of it back each time, and the
    machine hands it out anew, page by page: a twentieth of a step of small matrices.
    """
    _set(M_MMAP_THRESHOLD, 32 * MIB)
    _set(M_TRIM_THRESHOLD, 1024 * MIB)


def give_back() -> None:
    """Have arrays of a MiB go back to the machine when they are freed.

    Left alone, glibc takes the sizes that it has seen freed as what its heap should serve, and products of changing
    width then tear holes into that: a rank was seen to hold a seventh more than its arrays.
    """
    _set(M_MMAP_THRESHOLD, MIB)


def _set(setting: int, value: int) -> None:
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(setting, value)
