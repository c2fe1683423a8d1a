"""The metrics of a job of several ranks: every rank's steps are counted, and rank 0's rows outlive a kill."""

from __future__ import annotations

import stat

import numpy as np
import pytest

from analysis.store.reader import read_attempt
from launch.metrics import STEP_TIME
from tests.launch.measures import STREAMS, step_time_s, waited_s

PROGRAM = ("-m", "tests.launch.measures")


@pytest.fixture(scope="module", params=[1, 2, 3])
def measured(request, tmp_path_factory, mpiexec):
    """(ranks, steps, attempt): 23 steps, reduced every 10."""
    path = tmp_path_factory.mktemp("metrics") / "attempt-001.h5"
    ended = mpiexec(request.param, *PROGRAM, str(path), "23", "10")
    assert ended.status == 0, ended.stderr
    return request.param, 23, read_attempt(path)


def test_rows_are_what_was_recorded_once_whatever_the_number_of_ranks(measured):
    _, steps, attempt = measured
    number = np.arange(1, steps + 1)
    assert set(attempt.streams) == {stream.name for stream in STREAMS}
    for name, values in (("loss", 1 / number), ("lr", number / 8)):
        rows = attempt.streams[name]
        np.testing.assert_array_equal(rows["step"], number)
        np.testing.assert_array_equal(rows["tokens"], 100 * number)
        np.testing.assert_array_equal(rows["value"], values)
        assert (np.diff(rows["time"]) >= 0).all()
    assert [(e["kind"], e["message"]) for e in attempt.events] == [(b"repeats", b"twice")]


def test_step_times_of_all_ranks_are_counted_every_so_often_and_at_the_end(measured):
    ranks, steps, attempt = measured
    rows = attempt.dists["step_time"]
    assert rows["step"].tolist() == [10, 20, 23]
    assert rows["counts"].sum(axis=1).tolist() == [10 * ranks, 10 * ranks, 3 * ranks]
    assert rows["counts"].sum() == ranks * steps
    one_each = STEP_TIME.count(np.array([step_time_s(rank) for rank in range(ranks)]))
    np.testing.assert_array_equal(rows["counts"].sum(axis=0), steps * one_each)


def test_the_extremes_and_the_slowest_ranks_are_named(measured):
    ranks, _, attempt = measured
    times_s = [step_time_s(rank) for rank in range(ranks)]
    for row in attempt.dists["step_time"]:
        assert (row["min"], row["median"], row["max"]) == (min(times_s), np.median(times_s), max(times_s))
        slowest_first = sorted(range(ranks), key=lambda rank: -times_s[rank])
        assert row["slowest"].tolist() == [*slowest_first, -1, -1, -1, -1][:4]


def test_who_waits_for_others_is_not_called_slow(measured):
    ranks, _, attempt = measured
    own_s = [step_time_s(rank) - waited_s(rank) for rank in range(ranks)]
    for row in attempt.dists["own_time"]:
        assert (row["min"], row["median"], row["max"]) == (min(own_s), np.median(own_s), max(own_s))
        assert row["slowest"][0] == (2 if ranks == 3 else 0)


def test_summary_meta_and_the_file_are_in_order(measured):
    _, _, attempt = measured
    assert attempt.summary == {"wall_s": 12.5}
    assert attempt.meta["run_id"] == "r"
    assert stat.S_IMODE(attempt.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_leaves_all_flushed_rows(tmp_path, mpiexec, rank):
    ended = mpiexec(2, *PROGRAM, str(tmp_path / "m.h5"), "99", "7", str(rank), "18")
    assert ended.status != 0
    attempt = read_attempt(tmp_path / "m.h5")
    steps = attempt.streams["loss"]["step"]
    assert steps.tolist() == list(range(1, len(steps) + 1))
    assert len(steps) >= 15, "the flush after step 15 was lost"
    assert attempt.dists["step_time"]["step"].tolist() == [7, 14]
    assert attempt.summary == {}


def test_an_existing_file_is_refused_and_untouched(tmp_path, mpiexec):
    path = tmp_path / "m.h5"
    path.write_text("precious")
    ended = mpiexec(1, *PROGRAM, str(path), "1", "1")
    assert ended.status != 0
    assert "exists already; one attempt writes one file" in ended.stderr
    assert path.read_text() == "precious"


def test_a_run_without_steps_ends_with_its_summary_and_no_row(tmp_path, mpiexec):
    ended = mpiexec(2, *PROGRAM, str(tmp_path / "m.h5"), "0", "5")
    assert ended.status == 0, ended.stderr
    attempt = read_attempt(tmp_path / "m.h5")
    assert len(attempt.dists["step_time"]) == 0
    assert attempt.summary == {"wall_s": 12.5}
