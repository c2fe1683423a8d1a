"""Text as tokens in one memory-mapped file, made once and named by a hash of all that it follows from."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.rundir import make_private, write_private
from workflows.errors import ConfigError
from workflows.llm.batches import Packed
from workflows.llm.config import DataConfig
from workflows.llm.tokenizer import Document, Tokenizer, read_tokenizer, train_bpe

SCHEMA = "isoflop-tokens/2"
NO_TEXT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
PIECES = 64
"""Documents that a text of a single file is cut into, so that some of it can be held back."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Tokens on disk, those of training first, and beside them (`.starts`) the place of each document's first one.

    The file's name is a hash of the text and how it was cut.
    """

    path: Path
    tokenizer: str
    """`byte`, `bpe`, or `file`: a ready one."""
    tokenizer_sha256: str
    """Of the tokenizer's JSON, which lies beside as `.tokenizer.json`; empty for bytes."""
    vocab_size: int
    """Above every token."""
    text_sha256: str
    documents: int
    validation_documents: int
    train_tokens: int
    validation_tokens: int
    validation_bytes: int
    schema: str = SCHEMA

    def __str__(self) -> str:
        cut = "" if self.tokenizer == "byte" else f", {self.bytes_per_token:.2f} bytes a token"
        return (
            f"text: {self.train_tokens:,} {self.tokenizer} tokens to train on, {self.validation_tokens:,} to "
            f"validate on, in {self.documents} documents{cut}"
        )

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the validation text over its tokens: a loss in nats a token over this is one in nats a byte."""
        return self.validation_bytes / self.validation_tokens

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the tokens on disk: the smallest that holds the vocabulary, little-endian."""
        return np.dtype("u1" if self.vocab_size <= 2**8 else "<u2" if self.vocab_size <= 2**16 else "<u4")

    def read(self) -> tuple[Packed, Packed]:
        """Return the text of training and that of validation, mapped, not loaded."""
        tokens = np.memmap(self.path, dtype=self.dtype, mode="r")
        starts = np.fromfile(self.path.with_suffix(".starts"), "<i8")
        trained = self.documents - self.validation_documents
        return (
            Packed(tokens[: self.train_tokens], starts[:trained]),
            Packed(tokens[self.train_tokens :], starts[trained:]),
        )


def open_tokens(path: Path, config: DataConfig, vocab_size: int) -> TokenFile:
    """Return the token file `path` as the header beside it (`.json`) describes it.

    Raises:
        ConfigError: one of the files is missing, unreadable or empty, the header is none, or it tells of
            another tokenizer, of more symbols than `vocab_size`, or of another number of tokens or documents.
    """
    header_path = path.with_suffix(".json")
    try:
        held, placed = path.stat().st_size, path.with_suffix(".starts").stat().st_size
        header = TokenFile(**{**json.loads(header_path.read_bytes()), "path": path})
        counts = (header.train_tokens, header.validation_tokens, header.documents, header.validation_bytes)
        if min(counts) < 0:
            raise ValueError
        wanted = (header.train_tokens + header.validation_tokens) * header.dtype.itemsize
    except OSError as error:
        raise ConfigError(f"data.source: {error.filename}: {error.strerror}") from None
    except (TypeError, ValueError):
        raise ConfigError(f"data.source: {header_path}: is no header of a token file") from None
    ready = (
        read_tokenizer(Path(config.tokenizer)).sha256 if config.kind == "file" else header.tokenizer_sha256
    )
    for what, found, needed in (
        ("schema", header.schema, SCHEMA),
        ("tokenizer", header.tokenizer, config.kind),
        ("tokenizer's SHA-256", header.tokenizer_sha256, ready),
        ("size in bytes", held, wanted),
        ("number of documents", placed, header.documents * 8),
    ):
        if found != needed:
            raise ConfigError(f"data.source: {path}: its {what} is {found}, it should be {needed}")
    if not held:
        raise ConfigError(f"data.source: {path}: holds no tokens")
    if header.vocab_size > vocab_size:
        raise ConfigError(f"model.vocab_size={vocab_size}: {path} has {header.vocab_size} symbols")
    return header


def read_documents(source: str) -> list[Document]:
    """Return (name, bytes) of every document, sorted by name; a document is a file, or a piece of a single one.

    Empty files are no documents: none could stand for the text in validation.

    Raises:
        ConfigError: no file is found, one cannot be read, or all are empty.
    """
    if source == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        named = [(path.relative_to(root).as_posix(), path) for path in _sources(root)]  # wherever Python lies
    else:
        found = [source] if os.path.isfile(source) else glob.glob(source, recursive=True)
        root = Path(source).parent if os.path.isfile(source) else _fixed_part(source)
        paths = [Path(name) for name in found if not os.path.isdir(name)]
        named = [(path.relative_to(root).as_posix(), path) for path in paths]  # wherever the text lies
    if not named:
        raise ConfigError(f"data.source: no file '{source}'; give 'stdlib', a file, or a glob of files")
    documents = []
    for name, path in sorted(named):
        try:
            documents.append((name, path.read_bytes()))
        except OSError as error:
            raise ConfigError(f"data.source: {path}: {error.strerror}") from None
    documents = [(name, text) for name, text in documents if text]
    if not documents:
        raise ConfigError(f"data.source: '{source}' holds no text, only empty files")
    if len(documents) > 1:
        return documents
    [(name, text)] = documents
    cuts = _cuts(text)
    return [(f"{name}#{i:02d}", text[cuts[i] : cuts[i + 1]]) for i in range(PIECES)]


def _cuts(text: bytes) -> list[int]:
    """Return where each of PIECES pieces begins, and the end; in a text of UTF-8 no character is cut."""
    cuts = [len(text) * piece // PIECES for piece in range(PIECES + 1)]
    try:
        text.decode()
    except UnicodeDecodeError:
        return cuts
    return [next((i for i in range(at, len(text)) if text[i] & 0xC0 != 0x80), len(text)) for at in cuts]


def _fixed_part(pattern: str) -> Path:
    """Return the folder that all files of a glob lie in, as far as the pattern itself says."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))


def _sources(root: Path) -> Iterator[Path]:
    """Yield the Python files below `root`; the folders of NO_TEXT, which hold most files, are not entered."""
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in NO_TEXT]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def prepare_tokens(config: DataConfig, vocab_size: int, cache_dir: Path) -> TokenFile:
    """Write the token file of `config` into `cache_dir` unless it is there, and return it.

    Any number of processes may prepare at once: files are written beside their place and renamed into it, the
    header last, so that a header stands for whole files. A source `*.tokens` is taken as it is.

    Raises:
        ConfigError: there is no text, or too little to train and to validate, a token file is damaged, or the
            tokenizer cannot be had, cannot read the text, or has more than `vocab_size` symbols.
    """
    if config.source.endswith(".tokens"):
        return open_tokens(Path(config.source), config, vocab_size)
    ready = read_tokenizer(Path(config.tokenizer)) if config.kind == "file" else Tokenizer()
    documents = read_documents(config.source)
    digest = hashlib.sha256()
    for name, text in documents:
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    which = f"bpe {vocab_size}" if config.kind == "bpe" else f"{config.kind} {ready.sha256}"
    cut = f"{SCHEMA} {which} {config.validation_fraction} {config.seed} {digest.hexdigest()}"
    path = make_private(cache_dir) / f"{hashlib.sha256(cut.encode()).hexdigest()[:16]}.tokens"
    if not path.with_suffix(".json").exists():
        held_back = _held_back([name for name, _ in documents], config)
        train = [document for document in documents if document[0] not in held_back]
        validation = [document for document in documents if document[0] in held_back]
        tokenizer = train_bpe(train, vocab_size) if config.kind == "bpe" else ready
        _write(path, config.kind, tokenizer, digest.hexdigest(), train, validation)
    return open_tokens(path, config, vocab_size)


def _write(
    path: Path,
    kind: str,
    tokenizer: Tokenizer,
    text_sha256: str,
    train: list[Document],
    validation: list[Document],
) -> None:
    parts = [tokenizer.encode(part) for part in (train, validation)]
    counts = [[len(tokens) for tokens in part] for part in parts]
    made = TokenFile(
        path,
        kind,
        tokenizer.sha256,
        tokenizer.vocab_size,
        text_sha256,
        documents=len(train) + len(validation),
        validation_documents=len(validation),
        train_tokens=sum(counts[0]),
        validation_tokens=sum(counts[1]),
        validation_bytes=sum(len(text) for _, text in validation),
    )
    starts = [np.cumsum([0, *each], dtype="<i8")[:-1] for each in counts]
    if tokenizer.json:
        write_private(path.with_suffix(".tokenizer.json"), tokenizer.json)
    write_private(path.with_suffix(".starts"), np.concatenate(starts).tobytes())
    write_private(path, np.concatenate([*parts[0], *parts[1]]).astype(made.dtype, copy=False).tobytes())
    write_private(path.with_suffix(".json"), json.dumps({**asdict(made), "path": path.name}) + "\n")


def _held_back(names: list[str], config: DataConfig) -> set[str]:
    """Return the documents for validation, drawn by a hash of the name alone: adding a file moves no other."""

    def drawn(name: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{config.seed}\0{name}".encode()).digest()[:8], "big") / 2**64

    few_have_none = min(names, key=drawn)
    return {name for name in names if drawn(name) < config.validation_fraction} | {few_have_none}
