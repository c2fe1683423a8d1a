"""The metrics store: what was flushed stays readable, whatever becomes of the writer, the disk or the file."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from analysis.errors import StoreError
from analysis.store import MetricsWriter, StreamSpec, read_attempt, read_last, read_run, recover
from analysis.store.schema import EVENT, ROW, SCHEMA
from tests.analysis.writing import DIST, add, writer
from tests.conftest import ROOT, run_process

WRITING = [sys.executable, "-m", "tests.analysis.writing"]


def written(path: Path, steps: range, attempt: int = 1, restore_step: int = 0) -> Path:
    with writer(path, attempt, restore_step) as metrics:
        for step in steps:
            add(metrics, step)
    return path


def killed(path: Path, flushes: int) -> int:
    """Kill a writer some time after its n-th flush; return the last step that it said to have flushed."""
    process = subprocess.Popen([*WRITING, str(path), "endless"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for _ in range(flushes):
        process.stdout.readline()
    time.sleep(0.003 * (flushes % 5))
    process.kill()
    said = process.communicate()[0].split("\n")[:-1]
    return int(said[-1]) if said else 7 * flushes


def test_a_file_has_the_documented_layout(tmp_path):
    path = tmp_path / "attempt-001.h5"
    with writer(path) as metrics:
        add(metrics, 1)
        metrics.event("restored", "from step 0", step=0)
        counts = DIST.count(np.array([1e-9, 0.5, 1e9]))
        slowest = np.array([1, 0, -1, -1], np.int32)
        metrics.distribution(
            "step_time", step=1, low=1e-9, median=0.5, high=1e9, slowest=slowest, counts=counts
        )
        metrics.set_summary(L_val=2.5)
    with h5py.File(path) as file:
        assert sorted(file) == ["dist", "events", "meta", "streams", "summary"]
        assert file["meta"].attrs["schema"] == SCHEMA
        assert file["streams/train_loss"].dtype == ROW
        assert dict(file["streams/train_loss"].attrs) == {"unit": "nat/token", "description": "of the batch"}
        assert file["events"].dtype == EVENT
        assert dict(file["dist/step_time"].attrs) == {"unit": "s", "low": 1e-6, "high": 1e4}
    held = read_attempt(path)
    assert held.summary == {"L_val": 2.5}, "a field that was not set is left out"
    assert held.dists["step_time"]["counts"][0][[0, -1]].tolist() == [1, 1], "no sample is lost"
    assert held.dists["step_time"]["counts"].sum() == 3
    assert held.streams["train_loss"][["step", "tokens", "value"]].tolist() == [(1, 10, 1.0)]
    assert read_last(path, "lr", "none")["lr"]["value"] == 1.0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "flushes", [1, 2, 30, *(pytest.param(n, marks=pytest.mark.full) for n in range(3, 300, 6))]
)
def test_every_flushed_row_outlives_a_kill(tmp_path, flushes):
    path = tmp_path / "attempt-001.h5"
    last = killed(path, flushes)
    for name in ("train_loss", "lr"):
        rows = read_attempt(path).streams[name]
        assert len(rows) >= last
        np.testing.assert_array_equal(rows["step"], np.arange(1, len(rows) + 1))
        np.testing.assert_array_equal(rows["tokens"], 10 * rows["step"])
    values = read_attempt(path).streams["lr"]
    np.testing.assert_array_equal(values["value"], values["step"])


def test_recovery_makes_a_file_that_every_tool_opens(tmp_path):
    path, out = tmp_path / "attempt-001.h5", tmp_path / "attempt-001-recovered.h5"
    killed(path, 5)
    with pytest.raises(OSError, match="already open"):
        h5py.File(path)
    before = path.read_bytes()
    rows = recover(path, out)
    assert path.read_bytes() == before
    with h5py.File(out) as file:
        held = read_attempt(path).streams
        assert rows == sum(map(len, held.values()))
        for name, table in held.items():
            np.testing.assert_array_equal(file["streams"][name][:], table)
        assert file["meta"].attrs["schema"] == SCHEMA
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert read_run(tmp_path).attempts == [1], "the copy is no attempt of its own"
    with pytest.raises(StoreError, match=r"attempt-001-recovered\.h5: exists already"):
        recover(path, out)
    with pytest.raises(StoreError, match=r"nowhere/out\.h5: cannot be written"):
        recover(path, tmp_path / "nowhere" / "out.h5")


@pytest.mark.parametrize("share", [0.99, 0.7, 0.3, 0.1])
def test_of_a_file_cut_short_the_rows_before_the_first_lost_one_are_kept(tmp_path, share):
    path, out = written(tmp_path / "whole.h5", range(1, 3000)), tmp_path / "out.h5"
    cut = tmp_path / "cut.h5"
    cut.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(StoreError, match=r"is truncated: .* `isoflop recover .*cut\.h5 NEW\.h5` copies"):
        read_attempt(cut)
    rows = recover(cut, out)
    held = read_attempt(out).streams
    assert rows == sum(map(len, held.values())) < 2 * 2999
    for name, table in held.items():
        np.testing.assert_array_equal(table["step"], np.arange(1, len(table) + 1), err_msg=name)
    assert sum(map(len, held.values())) > 0.7 * share * 2 * 2999 - 600, "what is whole is kept"


def test_rows_are_read_while_they_are_written(tmp_path):
    path = tmp_path / "attempt-001.h5"
    with writer(path) as metrics:
        for step in range(1, 601):
            add(metrics, step)
            if step % 150 == 0:
                metrics.flush()
                rows = read_attempt(path).streams["train_loss"]["step"]
                np.testing.assert_array_equal(rows, np.arange(1, step + 1))
                assert read_last(path, "train_loss")["train_loss"]["step"] == step


def test_an_existing_file_is_never_opened_for_writing(tmp_path):
    path = written(tmp_path / "attempt-001.h5", range(1, 50))
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"attempt-001\.h5: exists already; one attempt writes one file"):
        writer(path)
    assert path.read_bytes() == before


def test_a_later_attempt_replaces_what_came_after_its_restore_step(tmp_path):
    written(tmp_path / "attempt-001.h5", range(1, 31))
    written(tmp_path / "attempt-002.h5", range(21, 41), attempt=2, restore_step=20)
    assert _sources(tmp_path) == [(1, 1, 20), (2, 21, 40)]
    written(tmp_path / "attempt-200.h5", range(11, 16), attempt=200, restore_step=10)
    assert _sources(tmp_path) == [(1, 1, 10), (200, 11, 15)]
    (tmp_path / "attempt-1000.h5").symlink_to(written(tmp_path / "x.h5", range(13, 14), 1000, 12))
    assert _sources(tmp_path) == [(1, 1, 10), (200, 11, 12), (1000, 13, 13)]
    assert read_run(tmp_path).meta["attempt"] == 1000


def _sources(directory: Path) -> list[tuple[int, int, int]]:
    """Return (attempt, first step, last step) of each stretch of the merged history, by its time stamps."""
    merged = read_run(directory)
    assert merged.damaged == []
    paths = {n: directory / f"attempt-{n:03d}.h5" for n in merged.attempts}
    times = {n: set(read_attempt(path).streams["lr"]["time"]) for n, path in paths.items()}
    rows = merged.streams["lr"]
    assert np.all(np.diff(rows["step"]) == 1)
    owners = [next(n for n in times if row["time"] in times[n]) for row in rows]
    found = []
    for n in sorted(set(owners)):
        steps = rows["step"][np.array(owners) == n]
        found.append((n, int(steps[0]), int(steps[-1])))
    return found


def test_a_damaged_attempt_is_named_and_the_others_count(tmp_path):
    written(tmp_path / "attempt-001.h5", range(1, 31))
    (tmp_path / "attempt-002.h5").write_bytes(b"garbage")
    written(tmp_path / "attempt-003.h5", range(21, 41), attempt=3, restore_step=20)
    merged = read_run(tmp_path)
    assert merged.streams["lr"]["step"].tolist() == list(range(1, 41))
    assert merged.attempts == [1, 3]
    [sentence] = merged.damaged
    assert sentence.startswith(f"{tmp_path / 'attempt-002.h5'}: cannot be read")


def _truncated(path: Path, share: float) -> None:
    whole = written(path.with_name("whole.h5"), range(1, 3000)).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def _foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("meta").attrs["schema"] = "isoflop-metrics/9"


BAD = {
    "garbage": lambda path: path.write_bytes(os.urandom(4096)),
    "empty": lambda path: path.touch(),
    "another HDF5 file": lambda path: h5py.File(path, "w").close(),
    "foreign schema": _foreign,
    "missing": lambda path: None,
    **{
        f"cut at {share}": lambda path, share=share: _truncated(path, share)
        for share in (0.02, 0.1, 0.5, 0.99)
    },
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_a_bad_file_is_one_sentence_with_its_path(tmp_path, make):
    path = tmp_path / "attempt-001.h5"
    make(path)
    for read in (read_attempt, lambda path: read_run(path.parent)):
        if read is not read_attempt and not path.exists():
            continue
        with pytest.raises(StoreError, match=f"^{re.escape(str(path))}: [^\n]*$") as caught:
            read(path)
        assert caught.value.exit_code == 5


@pytest.mark.parametrize("limit", ["disk", "file size"])
def test_a_full_disk_is_one_sentence_and_costs_no_flushed_row(tmp_path, limit):
    command = [*WRITING, str(tmp_path / "attempt-001.h5"), "full"]
    if limit == "disk":
        mount = 'mount -t tmpfs -o size=100k tmpfs /mnt && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, "-", *WRITING, "/mnt/attempt-001.h5", "full"]
        if run_process([*command[:4], mount, "-", "true"]).status:
            pytest.skip("no tmpfs can be mounted here")
    ended = run_process(command)
    assert (ended.status, ended.stderr) == (0, ""), "HDF5 crashes at exit when it tries the writes again"
    told = json.loads(ended.stdout)
    reason = {"disk": "No space left on device", "file size": "File too large"}[limit]
    assert re.fullmatch(
        rf".*attempt-001\.h5: cannot be written \({reason}\); [\d,]+ bytes are free there", told["error"]
    )
    assert len(told["rows"]) >= told["flushed"] > 0
    assert told["rows"] == list(range(1, len(told["rows"]) + 1))


def test_an_event_is_cut_between_characters(tmp_path):
    path = tmp_path / "attempt-001.h5"
    with writer(path) as metrics:
        metrics.event("größer", "x" + "é" * 300)
        metrics.event("e" * 40, "lost \udcff byte")
    first, second = read_attempt(path).events
    assert (first["kind"].decode(), first["message"].decode()) == ("größer", "x" + "é" * 115)
    assert (second["kind"], second["message"]) == (b"e" * 16, b"lost \\udcff byte")


def test_a_directory_without_attempts_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"holds no attempt-NNN\.h5"):
        read_run(tmp_path)
    with pytest.raises(StoreError, match=r"nowhere/a\.h5: cannot be written"):
        MetricsWriter(tmp_path / "nowhere" / "a.h5", meta={}, streams=[StreamSpec("a", "", "")])
