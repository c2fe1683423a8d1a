"""Byte pairs: learned alike every time, decoded to what was encoded; a ready tokenizer's mistakes are one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.errors import ConfigError
from workflows.llm import tokenizer as module
from workflows.llm.tokenizer import Tokenizer, read_tokenizer, train_bpe

SOURCES = sorted(Path(module.__file__).parent.glob("*.py"))
TEXTS = [(path.name, path.read_bytes()) for path in SOURCES]
LEARNED = train_bpe(TEXTS, 600)
BACK = tokenizers.Tokenizer.from_buffer(LEARNED.json)
AGAIN = """
import sys
from tests.workflows.llm.test_tokenizer import TEXTS, train_bpe
sys.stdout.buffer.write(train_bpe(TEXTS, 600).json)
"""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(), max_size=4))
def test_any_text_comes_back(texts):
    encoded = LEARNED.encode([(str(i), text.encode()) for i, text in enumerate(texts)])
    assert [BACK.decode(tokens.tolist(), skip_special_tokens=False) for tokens in encoded] == texts


def test_the_same_documents_give_the_same_file_byte_for_byte():
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    again = subprocess.run([sys.executable, "-c", AGAIN], env=environment, capture_output=True, timeout=60)
    assert again.stdout == LEARNED.json, again.stderr


def test_there_are_all_bytes_and_no_more_symbols_than_asked_for():
    assert LEARNED.vocab_size == 600
    few = train_bpe([("one", b"no pair twice")], 600)
    assert few.vocab_size == 256
    [tokens] = few.encode([("every character", "".join(map(chr, range(0x900))).encode())])
    assert len(tokens) == 0x80 + 2 * (0x800 - 0x80) + 3 * 0x100, "as many tokens as bytes"


def test_pairs_make_text_shorter():
    tokens = LEARNED.encode(TEXTS)
    assert sum(map(len, tokens)) < 0.6 * sum(len(text) for _, text in TEXTS)
    assert max(each.max() for each in tokens) < 600


def test_bytes_are_their_own_tokens():
    [tokens] = Tokenizer().encode([("any", bytes(range(256)))])
    np.testing.assert_array_equal(tokens, np.arange(256))
    assert (Tokenizer().vocab_size, Tokenizer().sha256) == (256, "")


def test_a_ready_tokenizer_cuts_no_text_off_and_pads_none(tmp_path):
    limited = tokenizers.Tokenizer.from_buffer(LEARNED.json)
    limited.enable_truncation(4)
    limited.enable_padding(length=9)
    limited.save(str(tmp_path / "limited.json"))
    ready = read_tokenizer(tmp_path / "limited.json")
    for got, want in zip(ready.encode(TEXTS), LEARNED.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(got, want)


def test_numbers_that_a_vocabulary_leaves_out_count():
    held = json.loads(LEARNED.json)
    held["added_tokens"] = [
        {"id": 999, "content": "<pad>", "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
    ]
    assert Tokenizer(json.dumps(held).encode(), "sparse").vocab_size >= 601


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "\0"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ConfigError, match=f"^data.tokenizer={tmp_path}/t.json: is no tokenizer ") as caught:
        read_tokenizer(tmp_path / "t.json")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"^data.tokenizer={tmp_path}/t.json: No such file or directory$"):
        read_tokenizer(tmp_path / "t.json")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ConfigError, match=r"^data\.tokenizer=bpe: the package tokenizers is missing; pip install "
    ):
        train_bpe(TEXTS, 600)
