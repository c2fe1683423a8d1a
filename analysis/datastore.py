"""What smaller datastores would have found, from one search of the whole: retrieve many, then draw (MassiveDS).

Whether a passage is in the datastore of a share p follows from its number alone: smaller datastores lie within larger
ones, so that their losses make one curve. Drawing after the search is then the same as searching what was drawn, as
long as enough of what was retrieved is drawn. The law of such curves is `analysis/laws/datastore.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import DataError

Floats = NDArray[np.float64]
ROUNDED = 1e-5
"""What rounding may take from the inner product of two unit vectors in single precision, and more."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """Numbers and scores of each query's best passages, (queries, K), best first; of equal ones the smaller number."""

    ids: NDArray[np.int64]
    scores: Floats


def search(
    queries: NDArray[np.float32], passages: NDArray[np.float32], ids: NDArray[np.int64], K: int
) -> Nearest:
    """Return the K passages, of unit vectors (n, d) and numbers (n,), nearest to each query by inner product, exactly.

    A matrix product finds those that may be among them. They are then scored one by one in double precision, since
    the rounding of a matrix product depends on who else is in it: any sharding gives the same bits.
    """
    found = []
    for query in queries:
        rough = passages @ query
        least = np.partition(rough, -K)[-K] - ROUNDED if len(rough) > K else -np.inf
        near = np.flatnonzero(rough >= least)
        scores = (passages[near].astype(np.float64) * query).sum(axis=1)
        found.append(_best(ids[near], scores, K))
    return Nearest(*(np.stack(part) for part in zip(*found, strict=True)))


def merged(shards: Sequence[Nearest], K: int) -> Nearest:
    """Return the K best of what each shard of a datastore has found for the same queries."""
    ids, scores = (
        np.concatenate([getattr(one, name) for one in shards], axis=1) for name in ("ids", "scores")
    )
    found = [_best(*row, K) for row in zip(ids, scores, strict=True)]
    return Nearest(*(np.stack(part) for part in zip(*found, strict=True)))


def drawn(ids: NDArray[np.int64], share: float, seed: int = 0) -> NDArray[np.bool_]:
    """Return which passages are in the datastore of this share: those of smaller shares are among them."""
    mixed = ids.astype(np.uint64) + np.array([seed], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) < share * 2.0**64)


def subsampled(found: Nearest, share: float, k: int, seed: int = 0) -> Nearest:
    """Return the k best passages of each query in the datastore of this share.

    Raises:
        DataError: of what was retrieved for a query, fewer than k are drawn: others would be among its best.
    """
    kept = drawn(found.ids, share, seed)
    short = np.flatnonzero(kept.sum(axis=1) < k)
    if len(short):
        raise DataError(
            f"datastore of share {share:g}: query {short[0]} keeps {kept[short[0]].sum()} of {found.ids.shape[1]} "
            f"retrieved passages, {k} are needed; retrieve more"
        )
    first = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    return Nearest(np.take_along_axis(found.ids, first, 1), np.take_along_axis(found.scores, first, 1))


def _best(ids: NDArray[np.int64], scores: Floats, K: int) -> tuple[NDArray[np.int64], Floats]:
    """Return numbers and scores of the K best, in order."""
    order = np.lexsort((ids, -scores))[:K]
    return ids[order], scores[order]
