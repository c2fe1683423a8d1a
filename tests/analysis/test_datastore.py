"""Smaller datastores out of one search: the same passages, id by id, as a search of each; or a refusal."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.datastore import drawn, merged, search, subsampled
from analysis.errors import DataError

K, SHARE, k = 1000, 0.1, 3
ON_RANKS = """
from mpi4py import MPI
import numpy as np
from analysis.datastore import merged, search
from tests.analysis.test_datastore import vectors

comm = MPI.COMM_WORLD
queries, passages, ids = vectors(20_000)
found = merged(comm.allgather(search(queries, passages[comm.rank::comm.size], ids[comm.rank::comm.size], 100)), 100)
whole = search(queries, passages, ids, 100)
assert (found.ids == whole.ids).all() and (found.scores == whole.scores).all()
print(comm.rank, found.ids.shape, flush=True)
"""


def vectors(count: int):
    """Return 64 queries and so many passages, unit vectors of 32 numbers, a hundredth of them twice."""
    rng = np.random.default_rng(0)
    found = rng.standard_normal((64 + count, 32), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    found[-count // 100 :] = found[64 : 64 + count // 100]
    return found[:64], found[64:], np.arange(count)


def test_drawing_after_the_search_is_searching_what_was_drawn():
    queries, passages, ids = vectors(200_000)
    kept = drawn(ids, SHARE)
    want = search(queries, passages[kept], ids[kept], k)
    found = subsampled(search(queries, passages, ids, K), SHARE, k)
    np.testing.assert_array_equal(found.ids, want.ids)
    with pytest.raises(
        DataError, match=r"^datastore of share 0\.1: query \d+ keeps [012] of 10 retrieved passages"
    ):
        subsampled(search(queries, passages, ids, 10), SHARE, k)


def test_shards_merge_into_the_whole_ties_by_number():
    queries, passages, ids = vectors(20_000)
    whole = search(queries, passages, ids, 100)
    shards = [search(queries, passages[i::4], ids[i::4], 100) for i in range(4)]
    found = merged(shards, 100)
    np.testing.assert_array_equal(found.ids, whole.ids)
    np.testing.assert_array_equal(found.scores, whole.scores)
    assert (np.diff(whole.scores, axis=1) == 0).any(), "there are ties"
    same = np.diff(whole.scores, axis=1) == 0
    assert (np.diff(whole.ids, axis=1)[same] > 0).all()


@pytest.mark.full
def test_ranks_merge_their_shards_into_the_whole(mpiexec):
    done = mpiexec(4, "-c", ON_RANKS)
    assert (done.status, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"{rank} (64, 100)" for rank in range(4)]


def test_smaller_datastores_lie_within_larger_ones():
    ids = np.arange(100_000)
    shares = (0.01, 0.1, 0.5, 1.0)
    masks = [drawn(ids, share, seed=3) for share in shares]
    for share, mask, larger in zip(shares, masks, [*masks[1:], np.ones(len(ids), bool)], strict=True):
        assert mask.mean() == pytest.approx(share, abs=0.006)
        assert larger[mask].all()
    assert drawn(ids, 0.5, seed=4).mean() == pytest.approx(0.5, abs=0.006)
    assert (drawn(ids, 0.5, seed=4) != masks[2]).mean() > 0.4, "another seed, another datastore"
