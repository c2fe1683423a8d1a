"""A run's directory speaks for itself: its files alone give its state, and nothing in it is ever half-written."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.rundir import (
    RUN_ID,
    ExitRecord,
    RunDir,
    make_private,
    write_exit,
    write_private,
)

FORK = multiprocessing.get_context("fork")
RECORD = ExitRecord(code=1, cause="it broke", rank=0, step=4, started_s=1.5, ended_s=2.5)


def test_a_directory_that_is_missing_or_empty_is_pending(tmp_path):
    assert RunDir(tmp_path / "missing").state() == "pending"
    (tmp_path / "run.yaml").touch()
    (tmp_path / "notes-attempt-001.txt").touch()
    assert RunDir(tmp_path).state() == "pending"
    assert RunDir(tmp_path).next_attempt() == 1


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, "done"), (75, "requeue"), (130, "interrupted"), (1, "failed"), (2, "failed"), (5, "failed")],
)
def test_the_last_exit_record_is_the_state(tmp_path, code, state):
    run = RunDir(tmp_path)
    write_exit(run, 1, replace(RECORD, code=0 if code else 1))
    write_exit(run, 2, replace(RECORD, code=code))
    assert run.state() == state
    assert run.last_exit() == replace(RECORD, code=code)
    run.attempt(3, "out").touch()
    assert run.state() == "interrupted", "attempt 3 left no word and nobody is at work"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"schema": "isoflop-exit/1"}', "\udcff"])
def test_an_unreadable_exit_record_is_none(tmp_path, text):
    run = RunDir(tmp_path)
    run.attempt(1, "exit.json").write_text(text, errors="surrogateescape")
    assert run.exit_record(1) is None
    assert run.state() == "interrupted"


def test_an_exit_record_of_another_schema_is_none(tmp_path):
    run = RunDir(tmp_path)
    run.attempt(1, "exit.json").write_text(json.dumps({**asdict(RECORD), "schema": "isoflop-exit/9"}))
    assert run.exit_record(1) is None


def test_attempts_are_counted_beyond_999_and_by_any_of_their_files(tmp_path):
    for name in ("attempt-002.h5", "attempt-010.err", "attempt-1000.out", ".attempt-2000.exit.json.0.1"):
        (tmp_path / name).touch()
    assert RunDir(tmp_path).attempts() == [2, 10, 1000]
    assert RunDir(tmp_path).next_attempt() == 1001


def write_when_all_are_ready(path: Path, rank: int, ready, taken) -> None:
    ready.wait()
    if write_exit(RunDir(path), 1, replace(RECORD, rank=rank, cause=f"cause {rank} " * 999)):
        taken.put(rank)


@pytest.mark.parametrize("repetition", range(5))
def test_the_first_of_many_exit_records_wins_whole(tmp_path, repetition):
    ready, taken = FORK.Barrier(8), FORK.Queue()
    writers = [
        FORK.Process(target=write_when_all_are_ready, args=(tmp_path, rank, ready, taken))
        for rank in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    record = RunDir(tmp_path).exit_record(1)
    assert record.cause == f"cause {record.rank} " * 999
    assert taken.get(timeout=5) == record.rank
    assert taken.empty(), "two writers were told that theirs was taken"
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-001.exit.json"]
    assert not write_exit(RunDir(tmp_path), 1, RECORD)


def test_a_file_system_without_links_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # such file systems exist, but not on every machine
    with pytest.raises(LaunchError, match=r"attempt-001\.exit\.json: Operation not permitted"):
        write_exit(RunDir(tmp_path), 1, RECORD)
    assert list(tmp_path.iterdir()) == []


def rewrite_for_ever(path: Path) -> None:
    for i in range(10**9):
        write_private(path, f"{i % 10}" * 100_000)


def test_a_file_is_whole_whenever_it_is_read_and_whenever_its_writer_dies(tmp_path):
    path = tmp_path / "file"
    write_private(path, "0" * 100_000)
    writer = FORK.Process(target=rewrite_for_ever, args=(path,))
    writer.start()
    seen = set()
    while len(seen) < 5 and writer.is_alive():
        text = path.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1
        seen.add(text[0])
    writer.kill()
    writer.join()
    assert len(path.read_text()) == 100_000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "gone" / "file", tmp_path / "taken"):
        with pytest.raises(LaunchError, match=f"^{path}: "):
            write_private(path, "text")
    with pytest.raises(LaunchError, match=r"attempt-001\.exit\.json"):
        write_exit(RunDir(tmp_path / "gone"), 1, RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_made_directories_are_private_whatever_the_umask_and_others_stay_as_they_are(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    before = os.umask(0)
    try:
        made = make_private(tmp_path / "open" / "a" / "b")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent, made.parent.parent)]
    assert modes == [0o700, 0o700, 0o755]
    assert make_private(made) == made


def say_what_make_private_says(path: Path, said) -> None:
    if os.getuid() == 0:
        os.setuid(65534)  # nothing is unwritable for root
    try:
        make_private(path)
    except LaunchError as error:
        said.put(str(error))
    else:
        said.put("it was made")


@pytest.mark.parametrize(("below", "reason"), [("", "not writable"), ("new", "Permission denied")])
def test_an_unwritable_directory_is_one_sentence(tmp_path, below, reason):
    place = tmp_path / "closed"
    place.mkdir(mode=0o555)
    for parent in [tmp_path, tmp_path.parent, tmp_path.parent.parent]:
        parent.chmod(0o755)
    said = FORK.Queue()
    process = FORK.Process(target=say_what_make_private_says, args=(place / below, said))
    process.start()
    assert said.get(timeout=10) == f"{place / below}: {reason}; choose another `runs_dir`"
    process.join()


def test_a_file_in_the_way_of_a_directory_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LaunchError, match=f"^{path}: .*choose another `runs_dir`"):
            make_private(path)


@pytest.mark.parametrize("name", ["a", "width16-lr0.01-74234093", "_x", "a" * 64])
def test_a_run_id_is_a_plain_file_name(name):
    assert RUN_ID.fullmatch(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "A", "a b", "a\n", "ü", "a" * 65, "$(id)"])
def test_nothing_else_is_a_run_id(name):
    assert not RUN_ID.fullmatch(name)
