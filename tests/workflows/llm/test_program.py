"""The program on real ranks: one loss curve, however many share the work and however often it is broken off."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.store import read_run
from launch import checkpoint
from tests.workflows.llm.conftest import STREAMS, Outcome, outcome

WEIGHTS = ("weight/", "moment1/", "moment2/")


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def assert_within_rounding(one: Outcome, other: Outcome, relative: float) -> None:
    for name in STREAMS:
        np.testing.assert_array_equal(one.rows[name]["step"], other.rows[name]["step"])
        np.testing.assert_array_equal(one.rows[name]["tokens"], other.rows[name]["tokens"])
        assert difference(one.rows[name]["value"], other.rows[name]["value"]) <= relative, name
    for name in other.arrays:
        if name.startswith(WEIGHTS):
            assert difference(one.arrays[name], other.arrays[name]) <= relative, name


def assert_bits_equal(one: Outcome, other: Outcome) -> None:
    for name in STREAMS:
        for column in ("step", "tokens", "value"):
            assert one.rows[name][column].tobytes() == other.rows[name][column].tobytes(), name
    assert (one.step, set(one.arrays)) == (other.step, set(other.arrays))
    for name, array in one.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes(), name


@pytest.mark.parametrize("variant", ["whole", "pieces", "gloo"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_curve_and_weights_are_the_same_however_the_batch_is_shared(trained, ranks, variant):
    assert_within_rounding(trained[ranks, variant], trained[1, "whole"], 1e-9)


@pytest.mark.parametrize("ranks", [1, 2])
def test_single_precision_follows_double_as_far_as_it_can(trained, ranks):
    single = trained[ranks, "single"]
    assert single.arrays["weight/norm.weight"].dtype == np.float32
    assert (
        1e-9
        < difference(single.rows["train_loss"]["value"], trained[1, "whole"].rows["train_loss"]["value"])
        < 1e-4
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_interrupted_run_ends_as_an_undisturbed_one_bit_by_bit(trained, ranks):
    assert_bits_equal(trained[ranks, "interrupted"], trained[ranks, "whole"])


def test_a_run_may_go_on_with_another_number_of_ranks(trained):
    assert_within_rounding(trained[2, "moved"], trained[1, "whole"], 1e-9)


def test_the_rows_stand_at_the_steps_and_tokens_that_the_settings_say(trained):
    for made in trained.values():
        assert made.step == 12
        assert made.rows["val_loss"]["step"].tolist() == [4, 8, 12]
        assert made.rows["val_loss"]["tokens"].tolist() == [4 * 64, 8 * 64, 12 * 64]
        assert made.rows["train_loss"]["step"].tolist() == list(range(1, 13))
        assert made.rows["train_loss"]["value"][-1] < made.rows["train_loss"]["value"][0], (
            "nothing was learned"
        )


def test_the_program_as_it_is_started_leaves_all_that_a_run_has(start_program, trained):
    ended, run = start_program(2)
    assert ended.status == 0, ended.stderr
    assert_bits_equal(outcome(run.path), trained[2, "whole"])
    record, metrics = run.exit_record(1), read_run(run.path)
    assert (record.code, record.cause, record.step) == (0, "finished", 12)
    assert checkpoint.steps(run.checkpoints) == [10, 12]
    config = json.loads(metrics.meta["config"])
    assert (metrics.meta["world_size"], config["train"]["steps"]) == (2, 12)
    assert metrics.summary["D_tokens"] == 12 * 64
    assert metrics.summary["L_val"] == metrics.streams["val_loss"]["value"][-1]
    assert metrics.summary["wall_s"] > 0


@pytest.mark.parametrize(
    ("train", "sentence", "step"),
    [
        (
            {"dtype": "fp32"},
            r"step 2: loss .*, gradient norm nan; lower optimizer.lr \(the peak here is 1e\+50\)",
            1,
        ),
        (
            {"steps": 1, "dtype": "fp32"},
            r"step 1: validation loss nan; lower optimizer.lr \(the peak here is 1e\+50\)",
            1,
        ),
    ],
)
def test_a_run_that_left_the_numbers_fails_with_a_sentence(start_program, train, sentence, step):
    ended, run = start_program(2, train=train, optimizer={"lr": 1e50})
    record = run.last_exit()
    assert (ended.status, record.code, record.step) == (1, 1, step)
    assert re.fullmatch(sentence, record.cause)
    assert "Traceback" not in ended.stderr
    assert read_run(run.path).summary == {}


def test_a_batch_that_the_ranks_cannot_share_is_refused(start_program):
    ended, run = start_program(3)
    assert (ended.status, run.last_exit().code) == (2, 2)
    assert run.last_exit().cause == (
        "train.global_batch = 4 is no multiple of 3, which is 3 data-parallel ranks x microbatch 1"
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_a_backend_for_gpus_is_refused_where_there_are_none(start_program):
    ended, run = start_program(1, parallel={"backend": "nccl"})
    assert (ended.status, run.last_exit().code) == (2, 2)
    assert run.last_exit().cause == (
        "parallel.backend: backend nccl moves tensors between GPUs, and torch sees none here; take mpi4py or gloo"
    )
    assert "Traceback" not in ended.stderr


def test_a_text_too_short_for_a_sequence_is_refused(start_program, tmp_path):
    (tmp_path / "short.txt").write_text("brevity is the soul of wit" * 3)
    ended, run = start_program(1, data={"source": str(tmp_path / "short.txt")})
    assert (ended.status, run.last_exit().code) == (2, 2)
    assert (
        "tokens for validation; one sequence needs 17, model.seq_len and its successor"
        in run.last_exit().cause
    )


def test_a_cache_that_cannot_be_written_is_named(start_program, tmp_path):
    (tmp_path / "file").touch()
    ended, run = start_program(2, cache_dir=tmp_path / "file")
    assert (ended.status, run.last_exit().code) == (1, 1)
    assert run.last_exit().cause.startswith(f"{tmp_path}/file: ")
    assert "Traceback" not in ended.stderr


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)


@pytest.mark.parametrize("damage", [flip_a_bit, pytest.param(cut_off, marks=pytest.mark.full)])
def test_a_damaged_checkpoint_is_told_once_and_the_one_before_it_taken(start_program, trained, damage):
    _, run = start_program(2, 0, 12)
    damage(run.checkpoints / "step-00000010" / "data-00000.bin")
    ended, run = start_program(2)
    assert ended.status == 0, ended.stderr
    assert re.search(
        r"step-00000010/data-00000.bin: array '\S+' is damaged, its checksum does not fit; going on from step 5",
        ended.stderr,
    )
    assert ended.stderr.count("going on from step 5") == 1
    assert [event["kind"] for event in read_run(run.path).events if event["step"] == 5] == [
        b"damaged",
        b"restored",
    ]
    assert_bits_equal(outcome(run.path), trained[2, "whole"])


def test_no_whole_checkpoint_is_exit_code_5(start_program):
    _, run = start_program(1, 0, 7)
    (run.checkpoints / "step-00000005" / "index.json").write_text("")
    ended, run = start_program(1)
    assert (ended.status, run.last_exit().code) == (5, 5)
    assert run.last_exit().cause.endswith(
        "index.json: its checksum does not fit; no older checkpoint is whole"
    )
