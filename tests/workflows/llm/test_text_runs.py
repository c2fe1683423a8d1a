"""Runs on other tokens than bytes, on packed documents, and with a compiler that is not there."""

from __future__ import annotations

import shutil

import pytest

from analysis.store import read_run
from launch.rundir import RunDir
from tests.launch import alone

PACKED = {"tokenizer": "bpe", "mask_documents": True}
MODEL = {"vocab_size": 320, "seq_len": 16, "width": 32, "head_width": 8, "kv_heads": 2, "layers": 1}


def test_packed_byte_pairs_train_on_a_ring_go_on_alone_and_take_no_other_tokenizer(start_program):
    ended, run = start_program(2, 0, 9, model=MODEL, data=PACKED, parallel={"cp": 2})
    assert run.state() == "interrupted" or run.last_exit().code
    ended, run = start_program(1, model=MODEL, data=PACKED)
    assert ended.status == 0, ended.stderr
    found = read_run(run.path)
    assert found.summary["L_val"] < 5.5
    assert found.meta["tokenizer"] == "bpe"
    assert 1 < found.meta["bytes_per_token"] < 8
    assert found.meta["tokenizer_sha256"] == alone.load(RunDir(run.path).checkpoints).meta["tokenizer_sha256"]
    ended, run = start_program(1, model={**MODEL, "vocab_size": 300}, data=PACKED)
    assert ended.status != 0
    ended, run = start_program(1, model=MODEL, data={**PACKED, "tokenizer": "byte"})
    assert (ended.status, run.last_exit().code) == (3, 3)
    assert "data.tokenizer=byte now has ''; bring it back, or remove" in run.last_exit().cause
    assert "Traceback" not in ended.stderr


@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
def test_what_a_killed_attempt_compiled_is_removed_by_the_next(start_program):
    compiled = {"compile": True, "dtype": "fp32"}
    ended, run = start_program(2, 1, 3, timeout_s=180, train=compiled)
    assert ended.status != 0
    left = run.path / "compiled"
    assert (left / "1").is_dir()
    (left / "7").mkdir()  # of a rank that the next attempt has not
    ended, run = start_program(2, timeout_s=180, train=compiled)
    assert ended.status == 0, ended.stderr
    assert not left.exists()


def test_a_missing_compiler_is_named_before_a_rank_trains(start_program, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    ended, run = start_program(2, train={"compile": True})
    assert (ended.status, run.last_exit().code, run.last_exit().step) == (2, 2, -1)
    assert run.last_exit().cause.startswith(
        "train.compile=true needs a C++ compiler and Python's headers on "
    )
    assert "/nowhere/g++" in run.last_exit().cause
    assert "Traceback" not in ended.stderr
