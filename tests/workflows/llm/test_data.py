"""Text becomes tokens once: documents stay whole, a document moves no other, and a mistake is one sentence."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from launch.errors import LaunchError
from workflows.errors import ConfigError
from workflows.llm.config import DataConfig
from workflows.llm.data import PIECES, TokenFile, open_tokens, prepare_tokens, read_documents
from workflows.llm.tokenizer import Tokenizer

VOCABULARY = 300
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Forty documents, each with words of its own."""
    (tmp_path / "text").mkdir()
    for i in range(40):
        document(tmp_path / "text", i)
    return tmp_path / "text"


def prepare(config: DataConfig, cache: Path) -> TokenFile:
    return prepare_tokens(config, VOCABULARY, cache)


def document(folder: Path, i: int) -> bytes:
    text = f"<{i}>".encode() * (20 + i)
    (folder / f"{i:03d}.txt").write_bytes(text)
    return text


def parts(folder: Path, cache: Path, **settings) -> tuple[bytes, bytes]:
    """(training text, validation text) of a folder."""
    made = prepare(DataConfig(source=f"{folder}/*.txt", validation_fraction=0.2, **settings), cache)
    train, validation = made.read()
    return train.tokens.tobytes(), validation.tokens.tobytes()


def held_in(text: bytes, documents: range) -> set[int]:
    """The documents that stand whole in a text."""
    return {i for i in documents if f"<{i}>".encode() * (20 + i) in text}


def test_the_standard_librarys_text_is_found_without_its_tests():
    documents = read_documents("stdlib")
    names = [name for name, _ in documents]
    assert len(names) > 300
    assert sum(len(text) for _, text in documents) > 5e6
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert names == sorted(names)
    assert not any("site-packages" in name or name.startswith(("/", "test/")) for name in names)


def test_no_document_is_split_between_training_and_validation(folder, tmp_path):
    train, validation = parts(folder, tmp_path)
    trained, held_back = held_in(train, range(40)), held_in(validation, range(40))
    assert trained | held_back == set(range(40))
    assert not trained & held_back
    assert 1 <= len(held_back) <= 16
    assert len(train) + len(validation) == sum(path.stat().st_size for path in folder.iterdir())


def test_another_document_moves_no_other(folder, tmp_path):
    before = held_in(parts(folder, tmp_path)[1], range(40))
    for i in range(40, 60):
        document(folder, i)
        after = held_in(parts(folder, tmp_path)[1], range(60))
        assert before == after & set(range(40))


def test_another_seed_holds_other_documents_back(folder, tmp_path):
    held_back = {frozenset(held_in(parts(folder, tmp_path, seed=s)[1], range(40))) for s in range(5)}
    assert len(held_back) == 5


def test_at_least_one_document_is_held_back(folder, tmp_path):
    config = DataConfig(source=f"{folder}/*.txt", validation_fraction=1e-9)
    (folder / "empty.txt").touch()
    for seed in range(20):  # an empty document would be a poor one to validate on
        made = prepare(config.model_copy(update={"seed": seed}), tmp_path)
        assert made.validation_documents == 1
        assert made.validation_tokens > 0


@pytest.mark.parametrize("length", [1, 63, 64, 65, 10_000])
def test_a_single_file_is_cut_into_pieces_that_make_it_up(tmp_path, length):
    text = os.urandom(length)
    (tmp_path / "one.txt").write_bytes(text)
    (tmp_path / "one.empty").touch()
    for source in (tmp_path / "one.txt", tmp_path / "one.*"):
        documents = read_documents(str(source))
        assert len(documents) == PIECES
        assert b"".join(piece for _, piece in documents) == text
        assert max(len(p) for _, p in documents) - min(len(p) for _, p in documents) <= 1


def test_a_single_file_is_cut_between_characters(tmp_path):
    (tmp_path / "one.txt").write_text("aßéΩ€😀" * 50)
    documents = read_documents(str(tmp_path / "one.txt"))
    assert "".join(piece.decode() for _, piece in documents) == "aßéΩ€😀" * 50
    assert len(documents) == PIECES


def test_a_text_that_is_moved_stays_the_same_text(folder, tmp_path):
    before = prepare(DataConfig(source=f"{folder}/**/*.txt"), tmp_path / "cache")
    folder.rename(tmp_path / "moved")
    assert prepare(DataConfig(source=f"{tmp_path}/moved/*.txt"), tmp_path / "cache") == before
    (tmp_path / "one.txt").write_text("one")
    assert read_documents(str(tmp_path / "one.txt")) == read_documents(f"{tmp_path}/o*.txt")


def test_a_glob_takes_files_at_any_depth_and_no_directory(folder):
    (folder / "deep.txt").mkdir()
    (folder / "deep.txt" / "inner.txt").write_text("inner")
    names = [name for name, _ in read_documents(f"{folder}/**/*.txt")]
    assert len(names) == 41
    assert "deep.txt/inner.txt" in names


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("brackets")
    assert b"".join(text for _, text in read_documents(str(tmp_path / "a[1].txt"))) == b"brackets"


def test_prepared_text_is_made_once_and_again_only_when_something_changed(folder, tmp_path):
    config = DataConfig(source=f"{folder}/*.txt")
    first = prepare(config, tmp_path / "cache")
    written_ns = first.path.stat().st_mtime_ns
    assert prepare(config, tmp_path / "cache") == first
    assert first.path.stat().st_mtime_ns == written_ns
    (folder / "000.txt").write_bytes(b"<?>" * 20)  # as long as before
    assert prepare(config, tmp_path / "cache").text_sha256 != first.text_sha256
    assert first.path.read_bytes() == b"".join(part.tokens.tobytes() for part in first.read())


def test_many_processes_prepare_one_text_at_once(folder, tmp_path):
    config = DataConfig(source=f"{folder}/*.txt")
    workers = [FORK.Process(target=prepare, args=(config, tmp_path / "cache")) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "nowhere.txt",
            "data.source: no file '{here}/nowhere.txt'; give 'stdlib', a file, or a glob of files",
        ),
        ("*.pdf", "data.source: no file '{here}/*.pdf'"),
        ("", "data.source: no file '{here}/'"),
        ("empty.txt", "data.source: '{here}/empty.txt' holds no text, only empty files"),
        ("empty*", "data.source: '{here}/empty*' holds no text, only empty files"),
        ("broken*", "data.source: {here}/broken.txt: No such file or directory"),
        ("nowhere.tokens", "data.source: {here}/nowhere.tokens: No such file or directory"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path, source, sentence):
    for name in ("empty.txt", "empty2.txt"):
        (tmp_path / name).touch()
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError) as caught:
        prepare(DataConfig(source=f"{tmp_path}/{source}"), tmp_path / "cache")
    assert str(caught.value).startswith(sentence.format(here=tmp_path))
    assert "\n" not in str(caught.value)


def say_what_is_read(path: Path, said) -> None:
    if os.getuid() == 0:
        os.setuid(65534)  # root may read everything
    try:
        said.put(len(read_documents(str(path))))
    except ConfigError as error:
        said.put(str(error))


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    path.chmod(0)
    for parent in [tmp_path, tmp_path.parent, tmp_path.parent.parent]:
        parent.chmod(0o755)
    said = FORK.Queue()
    process = FORK.Process(target=say_what_is_read, args=(path, said))
    process.start()
    assert said.get(timeout=10) == f"data.source: {path}: Permission denied"
    process.join()


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(LaunchError, match=f"^{tmp_path}/cache: "):
        prepare(DataConfig(source=f"{folder}/*.txt"), tmp_path / "cache")


def header(**changes):
    def change(tokens: Path) -> None:
        path = tokens.with_suffix(".json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def emptied(tokens: Path) -> None:
    header(train_tokens=0, validation_tokens=0)(tokens)
    tokens.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda tokens: tokens.write_bytes(b"short"), "{tokens}: its size in bytes is 5, it should be "),
        (lambda tokens: tokens.unlink(), "{tokens}: No such file or directory"),
        (lambda tokens: tokens.with_suffix(".json").unlink(), "{header}: No such file or directory"),
        (
            lambda tokens: tokens.with_suffix(".json").write_text("{"),
            "{header}: is no header of a token file",
        ),
        (
            lambda tokens: tokens.with_suffix(".json").write_text("[]"),
            "{header}: is no header of a token file",
        ),
        (
            lambda tokens: tokens.with_suffix(".json").write_bytes(b"\xff"),
            "{header}: is no header of a token",
        ),
        (header(tokenizer="bpe"), "{tokens}: its tokenizer is bpe, it should be byte"),
        (lambda tokens: tokens.with_suffix(".starts").unlink(), "{starts}: No such file or directory"),
        (header(documents=41), "{tokens}: its number of documents is 320, it should be 328"),
        (header(schema="isoflop-tokens/9"), "{tokens}: its schema is isoflop-tokens/9, it should be "),
        (header(train_tokens="many"), "{header}: is no header of a token file"),
        (header(train_tokens=-1, validation_tokens=4321), "{header}: is no header of a token file"),
        (header(colour="red"), "{header}: is no header of a token file"),
        (emptied, "{tokens}: holds no tokens"),
    ],
)
def test_a_token_file_that_is_not_what_it_says_is_refused(folder, tmp_path, damage, sentence):
    tokens = prepare(DataConfig(source=f"{folder}/*.txt"), tmp_path).path
    assert open_tokens(tokens, DataConfig(), 256).path == tokens
    damage(tokens)
    with pytest.raises(ConfigError) as caught:
        prepare(DataConfig(source=str(tokens)), tmp_path)
    beside = {"header": tokens.with_suffix(".json"), "starts": tokens.with_suffix(".starts")}
    wanted = "data.source: " + sentence.format(tokens=tokens, **beside)
    assert str(caught.value).startswith(wanted)


def learned(folder: Path, cache: Path, tokenizer: str = "bpe") -> TokenFile:
    return prepare(DataConfig(source=f"{folder}/*.txt", validation_fraction=0.2, tokenizer=tokenizer), cache)


def test_byte_pairs_are_learned_from_the_training_documents_alone(folder, tmp_path):
    made = learned(folder, tmp_path / "cache")
    json_text = made.path.with_suffix(".tokenizer.json").read_bytes()
    held_back = min(held_in(parts(folder, tmp_path)[1], range(40)))
    (folder / f"{held_back:03d}.txt").write_text("something entirely different " * 20)
    other = learned(folder, tmp_path / "cache")
    assert other.text_sha256 != made.text_sha256
    assert other.tokenizer_sha256 == made.tokenizer_sha256
    trained = min(held_in(parts(folder, tmp_path)[0], range(40)))
    (folder / f"{trained:03d}.txt").write_text("something entirely different " * 20)
    assert learned(folder, tmp_path / "cache").tokenizer_sha256 != made.tokenizer_sha256
    assert Tokenizer(json_text, "bpe").sha256 == made.tokenizer_sha256
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()} == {0o600}


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_documents_start_where_the_file_says_and_are_the_documents(folder, tmp_path, tokenizer):
    made = learned(folder, tmp_path / "cache", tokenizer)
    held = made.path.with_suffix(".tokenizer.json")
    back = (
        tokenizers.Tokenizer.from_file(str(held)).decode if held.exists() else (lambda t: bytes(t).decode())
    )
    found = []
    for part in made.read():
        assert part.starts[0] == 0
        found += [back(document.tolist()) for document in np.split(part.tokens, part.starts[1:])]
    assert sorted(found) == sorted(path.read_text() for path in folder.iterdir())
    validation = made.read()[1].tokens
    assert made.bytes_per_token == len(parts(folder, tmp_path)[1]) / len(validation)
    assert (made.bytes_per_token == 1) == (tokenizer == "byte")


@pytest.mark.parametrize(("vocabulary", "itemsize"), [(256, 1), (257, 2), (2**16, 2), (2**16 + 1, 4)])
def test_tokens_take_as_few_bytes_as_the_vocabulary_allows(folder, tmp_path, vocabulary, itemsize):
    made = replace(learned(folder, tmp_path), vocab_size=vocabulary)
    assert made.dtype.itemsize == itemsize
    assert np.iinfo(made.dtype).max >= vocabulary - 1


def test_a_ready_tokenizer_is_taken_as_it_is_wherever_it_lies(folder, tmp_path):
    learned(folder, tmp_path / "cache").path.with_suffix(".tokenizer.json").rename(tmp_path / "t.json")
    made = learned(folder, tmp_path / "cache", f"{tmp_path}/t.json")
    (tmp_path / "t.json").rename(tmp_path / "u.json")
    assert learned(folder, tmp_path / "cache", f"{tmp_path}/u.json") == made
    tokens = DataConfig(source=str(made.path), tokenizer=f"{tmp_path}/u.json")
    assert prepare(tokens, tmp_path) == made
    (tmp_path / "u.json").write_text((tmp_path / "u.json").read_text() + " ")
    with pytest.raises(
        ConfigError, match=f"{made.path}: its tokenizer's SHA-256 is {made.tokenizer_sha256}, it "
    ):
        prepare(tokens, tmp_path)


def test_a_tokenizer_with_more_symbols_than_the_model_is_refused(folder, tmp_path):
    made = learned(folder, tmp_path)
    symbols = made.vocab_size
    tokens = DataConfig(source=str(made.path), tokenizer="bpe")
    assert prepare_tokens(tokens, symbols, tmp_path) == made
    with pytest.raises(
        ConfigError, match=f"^model.vocab_size={symbols - 1}: {made.path} has {symbols} symbols$"
    ):
        prepare_tokens(tokens, symbols - 1, tmp_path)


def test_a_text_that_byte_pairs_cannot_read_is_named(folder, tmp_path):
    (folder / "007.txt").write_bytes(b"abc\xff")
    with pytest.raises(
        ConfigError, match=r"^data\.source: 007\.txt: byte 3 is not UTF-8, which data.tokenizer=bpe "
    ):
        learned(folder, tmp_path)
