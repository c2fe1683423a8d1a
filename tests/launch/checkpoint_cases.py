"""Cases of many ranks and one checkpoint; run by mpiexec, prints {case: {rank: traceback}} as JSON.

Usage: checkpoint_cases DIR [CASE ...]
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from mpi4py import MPI

from launch import checkpoint
from launch.errors import CheckpointError
from tests.launch.alone import largest_file

COLUMNS = 1000


def rows(comm: MPI.Intracomm, value: int, name: str = "x") -> list[checkpoint.Piece]:
    """Return this rank's row of an array that tells a number."""
    row = np.full((1, COLUMNS), value * 100 + comm.rank, np.float64)
    return [checkpoint.Piece(name, row, (comm.size, COLUMNS), (comm.rank, 0))]


def wanted(comm: MPI.Intracomm, row: int, n_rows: int | None = None) -> dict[str, checkpoint.Wanted]:
    return {
        "x": checkpoint.Wanted((n_rows or comm.size, COLUMNS), (row, 0), (1, COLUMNS), np.dtype(np.float64))
    }


def read(comm: MPI.Intracomm, directory: Path) -> tuple[int, float, list[str]]:
    """Return step, number and what was skipped, after each rank has read its neighbour's row."""
    row = (comm.rank + 1) % comm.size
    held = checkpoint.load(comm, directory, wanted(comm, row))
    assert np.unique(held.arrays["x"]).size == 1
    return held.step, (held.arrays["x"][0, 0] - row) / 100, held.skipped


def fault(comm: MPI.Intracomm, act: Callable[[], object]) -> Exception:
    """Return what `act` raises, which must be the same on every rank."""
    raised: Exception | None = None
    try:
        act()
    except Exception as error:
        raised = error
    assert len(set(comm.allgather((type(raised).__name__, str(raised))))) == 1, repr(raised)
    assert raised is not None, "nothing was raised"
    return raised


def files(comm: MPI.Intracomm, directory: Path) -> dict[str, bytes]:
    comm.Barrier()
    found = {str(path): path.read_bytes() if path.is_file() else b"" for path in directory.rglob("*")}
    comm.Barrier()
    return found


def full_disk(comm: MPI.Intracomm, directory: Path, rank: int, limit_bytes: int, **options: int) -> None:
    """Let one rank's disk be full at a byte: nothing changes, and the next save works."""
    for step in (1, 2):
        checkpoint.save(comm, directory, step, rows(comm, step), {})
    before = files(comm, directory)
    large = np.full((1, 5_000_000), comm.rank, np.float64)  # 40 MB: three messages
    pieces = [*rows(comm, 3), checkpoint.Piece("large", large, (comm.size, large.size), (comm.rank, 0))]
    with largest_file(limit_bytes) if comm.rank == rank else nullcontext():
        raised = fault(comm, lambda: checkpoint.save(comm, directory, 3, pieces, {}, **options))
    assert str(raised).startswith(f"{directory}/step-00000003: File too large; "), raised
    assert isinstance(raised, CheckpointError)
    assert raised.exit_code == 1, "5 would call it damaged, and nobody would try again"
    assert files(comm, directory) == before
    checkpoint.save(comm, directory, 3, pieces, {}, **options)
    row = (comm.rank + 1) % comm.size
    want = checkpoint.Wanted((comm.size, large.size), (row, 0), large.shape, large.dtype)
    assert (checkpoint.load(comm, directory, {"large": want}).arrays["large"] == row).all()
    assert read(comm, directory) == (3, 3, [])


def test_a_full_disk_under_the_last_ranks_own_file(comm, directory):
    full_disk(comm, directory, comm.size - 1, 5_000, ranks_per_file=1)


def test_a_full_disk_while_others_wait_for_their_turn(comm, directory):
    full_disk(comm, directory, 0, 60_000_000)


def test_a_full_disk_before_anybodys_turn(comm, directory):
    full_disk(comm, directory, 0, 100)


def test_a_place_that_is_a_file(comm, directory):
    if comm.rank == 0:
        directory.write_text("a file")
    raised = fault(comm, lambda: checkpoint.save(comm, directory / "below", 1, rows(comm, 1), {}))
    assert str(directory) in str(raised)
    assert (isinstance(raised, CheckpointError), raised.exit_code) == (True, 1)


def test_pieces_that_do_not_fill_an_array_once(comm, directory):
    checkpoint.save(comm, directory, 1, rows(comm, 1), {})
    before = files(comm, directory)
    row, last = np.ones((1, COLUMNS)), comm.rank == comm.size - 1
    shape = (comm.size, COLUMNS)
    overlap = rows(comm, 2) + [checkpoint.Piece("x", row, shape, (0, 0))] * last
    gap = rows(comm, 2)[: not last]
    moved = [checkpoint.Piece("x", row, shape, (comm.rank - last, 0))]  # as many elements as places
    other_type = [checkpoint.Piece("x", row.astype("f4"), shape, (comm.rank, 0))] if last else rows(comm, 2)
    for pieces, sentence in (
        (overlap, "the pieces of array 'x' overlap or leave a gap: "),
        (gap, "the pieces of array 'x' overlap or leave a gap: "),
        (moved, "the pieces of array 'x' overlap or leave a gap: "),
        (other_type, f"array 'x' is float32{list(shape)} here, float64{list(shape)} there"),
    ):
        raised = fault(comm, lambda pieces=pieces: checkpoint.save(comm, directory, 2, pieces, {}))
        assert str(raised).startswith(sentence), raised
        assert files(comm, directory) == before


def test_a_piece_that_is_no_number_on_one_rank(comm, directory):
    bad = [checkpoint.whole("bad", np.array(["a"]))] * (comm.rank == comm.size - 1)
    raised = fault(comm, lambda: checkpoint.save(comm, directory, 1, rows(comm, 1) + bad, {}))
    assert str(raised) == "array 'bad' is of type <U1; a checkpoint holds numbers only"
    assert files(comm, directory) == {}


def test_meta_that_is_not_json(comm, directory):
    raised = fault(comm, lambda: checkpoint.save(comm, directory, 1, rows(comm, 1), {"loss": float("nan")}))
    assert isinstance(raised, ValueError)


def test_damage_in_one_ranks_part_makes_all_go_back_together(comm, directory):
    for step in (1, 2):
        checkpoint.save(comm, directory, step, rows(comm, step), {}, ranks_per_file=1)
    damaged = directory / "step-00000002" / f"data-{comm.size - 1:05d}.bin"
    if comm.rank == 0:
        damaged.write_bytes(b"\1" * damaged.stat().st_size)
    comm.Barrier()
    sentence = f"{damaged}: array 'x' is damaged, its checksum does not fit"
    assert read(comm, directory) == (1, 1, [sentence])
    held = checkpoint.load(comm, directory, wanted(comm, 0))  # whoever needs nothing of it does not read it
    assert (held.step, held.skipped) == (2, [])
    if comm.rank == 0:
        (directory / "step-00000001" / "index.json").unlink()
    comm.Barrier()
    raised = fault(comm, lambda: read(comm, directory))
    assert (str(raised), raised.exit_code) == (f"{sentence}; no older checkpoint is whole", 5)


def test_another_model_on_one_rank_is_told_on_all_and_no_older_checkpoint_taken(comm, directory):
    checkpoint.save(comm, directory, 1, rows(comm, 1), {})
    checkpoint.save(comm, directory, 2, [*rows(comm, 2), *rows(comm, 2, "y")], {})
    right, there = wanted(comm, 0), f"float64[{comm.size}, {COLUMNS}] in the checkpoint"
    of_dtype = checkpoint.Wanted((comm.size, COLUMNS), (0, 0), (1, COLUMNS), np.dtype(np.float32))
    for other, sentence in (
        (wanted(comm, 0, 9), f"array 'x' is {there}, float64[9, {COLUMNS}] in this model"),
        ({"x": of_dtype}, f"array 'x' is {there}, float32[{comm.size}, {COLUMNS}] in this model"),
        ({"z": right["x"]}, f"{directory}/step-00000002: the checkpoint holds no array 'z'"),
    ):
        mine = other if comm.rank == comm.size - 1 else right
        raised = fault(comm, lambda mine=mine: checkpoint.load(comm, directory, mine))
        assert (str(raised), type(raised), raised.exit_code) == (sentence, CheckpointError, 5)


def test_a_saver_saves_what_the_arrays_held_when_it_was_started(comm, directory):
    saver, pieces, meta = checkpoint.Saver(comm.Dup(), directory), rows(comm, 1), {"deep": [1]}
    for step in (1, 2, 3):
        pieces[0].array[...] = step * 100 + comm.rank
        saver.start(step, pieces, meta)
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            assert checkpoint.steps(directory)[-1] == step
        pieces[0].array[...] = -1
        meta["deep"][0] = step + 1
    saver.wait()
    assert read(comm, directory) == (3, 3, [])
    assert checkpoint.load(comm, directory, {}).meta == {"deep": [3]}
    assert checkpoint.steps(directory) == [2, 3]


def test_a_saver_tells_every_rank_what_went_wrong_and_goes_on(comm, directory):
    saver, last = checkpoint.Saver(comm.Dup(), directory), comm.rank == comm.size - 1
    saver.start(1, rows(comm, 1), {})
    saver.start(2, rows(comm, 2)[: not last], {})
    raised = fault(comm, lambda: saver.start(3, rows(comm, 3), {}))
    assert str(raised).startswith("the pieces of array 'x' overlap or leave a gap")
    saver.start(4, rows(comm, 4)[: not last], {})
    fault(comm, saver.wait)
    saver.wait()
    assert read(comm, directory) == (1, 1, [])


def main() -> None:
    """Run as one rank."""
    comm, directory, report = MPI.COMM_WORLD, Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        failed = None
        try:
            globals()[name](comm, directory / name)
        except Exception:
            failed = traceback.format_exc(limit=-4)
        report[name] = {rank: each for rank, each in enumerate(comm.allgather(failed)) if each}
        if report[name]:
            break  # the ranks may be out of step
    if comm.rank == 0:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
