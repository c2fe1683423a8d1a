"""Random numbers as a hash of a key and a counter: anyone may draw any of them, in any order, on any rank.

The hash is the output function of SplitMix64 (Steele, Lea, Flood 2014) on key + counter x golden ratio.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(words: Words) -> Words:
    """Return `words` mixed, in place: a bijection of 64-bit numbers that looks random."""
    shifted = words >> _30
    words ^= shifted
    words *= _FIRST
    np.right_shift(words, _27, out=shifted)
    words ^= shifted
    words *= _SECOND
    np.right_shift(words, _31, out=shifted)
    words ^= shifted
    return words


def keys(seed: int, counters: NDArray[np.integer]) -> Words:
    """Return a key for each counter (such as a node's id), of its own for every seed."""
    stream = mix(np.array([seed], np.uint64) + GOLDEN)
    return mix(counters.astype(np.uint64) * GOLDEN + stream)


def draws(key: Words, first: int, count: int) -> Words:
    """Return draws `first` ... of each key: (keys, count), uniform in 64 bits."""
    at = np.arange(first, first + count, dtype=np.uint64) * GOLDEN
    return mix(key[:, None] + at)
