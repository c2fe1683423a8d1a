"""Text as tokens in one memory-mapped file, and the batches of a run as a pure function of seed and step."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launch.rundir import make_private, write_private
from workflows.errors import ConfigError
from workflows.llm.config import BYTE_VOCABULARY, DataConfig, LlmConfig

SCHEMA = "isoflop-tokens/1"
NO_TEXT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
PIECES = 64
"""Documents that a text of a single file is cut into, so that some of it can be held back."""

Document = tuple[str, bytes]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Tokens on disk, those of training first. The file's name is a hash of the text and how it was cut."""

    path: Path
    tokenizer: str
    vocab_size: int
    text_sha256: str
    documents: int
    validation_documents: int
    train_tokens: int
    validation_tokens: int
    schema: str = SCHEMA

    def __str__(self) -> str:
        return (
            f"text: {self.train_tokens:,} {self.tokenizer} tokens to train on, {self.validation_tokens:,} to "
            f"validate on, in {self.documents} documents"
        )

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the tokens of training and of validation, mapped, not loaded."""
        tokens = np.memmap(self.path, dtype=np.uint8, mode="r")
        return tokens[: self.train_tokens], tokens[self.train_tokens :]


def open_tokens(path: Path, tokenizer: str) -> TokenFile:
    """Return the token file `path` as the header beside it (`.json`) describes it.

    Raises:
        ConfigError: one of the two is missing, unreadable or empty, the header is none, or it tells of
            another tokenizer or another number of tokens.
    """
    header_path = path.with_suffix(".json")
    try:
        held = path.stat().st_size
        header = TokenFile(**{**json.loads(header_path.read_bytes()), "path": path})
        wanted = header.train_tokens + header.validation_tokens
        if min(header.train_tokens, header.validation_tokens) < 0:
            raise ValueError
    except OSError as error:
        raise ConfigError(f"data.source: {error.filename}: {error.strerror}") from None
    except (TypeError, ValueError):
        raise ConfigError(f"data.source: {header_path}: is no header of a token file") from None
    for what, found, needed in (
        ("schema", header.schema, SCHEMA),
        ("tokenizer", header.tokenizer, tokenizer),
        ("number of tokens", held, wanted),
    ):
        if found != needed:
            raise ConfigError(f"data.source: {path}: its {what} is {found}, it should be {needed}")
    if not held:
        raise ConfigError(f"data.source: {path}: holds no tokens")
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
        named = [(name, Path(name)) for name in found if not os.path.isdir(name)]
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
    cuts = [len(text) * piece // PIECES for piece in range(PIECES + 1)]
    return [(f"{name}#{i:02d}", text[cuts[i] : cuts[i + 1]]) for i in range(PIECES)]


def _sources(root: Path) -> Iterator[Path]:
    """Yield the Python files below `root`; the folders of NO_TEXT, which hold most files, are not entered."""
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in NO_TEXT]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def prepare_tokens(config: DataConfig, cache_dir: Path) -> TokenFile:
    """Write the token file of `config` into `cache_dir` unless it is there, and return it.

    Any number of processes may prepare at once: files are written beside their place and renamed into it, the
    header last, so that a header stands for a whole file. A source `*.tokens` is taken as it is.

    Raises:
        ConfigError: there is no text, or too little to train and to validate, or a token file is damaged.
    """
    if config.source.endswith(".tokens"):
        return open_tokens(Path(config.source), config.tokenizer)
    documents = read_documents(config.source)
    digest = hashlib.sha256()
    for name, text in documents:
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    cut = f"{SCHEMA} {config.tokenizer} {config.validation_fraction} {config.seed} {digest.hexdigest()}"
    path = make_private(cache_dir) / f"{hashlib.sha256(cut.encode()).hexdigest()[:16]}.tokens"
    header = path.with_suffix(".json")
    if not header.exists():
        held_back = _held_back([name for name, _ in documents], config)
        train = b"".join(text for name, text in documents if name not in held_back)
        validation = b"".join(text for name, text in documents if name in held_back)
        made = TokenFile(
            path,
            config.tokenizer,
            BYTE_VOCABULARY,
            digest.hexdigest(),
            documents=len(documents),
            validation_documents=len(held_back),
            train_tokens=len(train),
            validation_tokens=len(validation),
        )
        write_private(path, train + validation)
        write_private(header, json.dumps({**asdict(made), "path": path.name}) + "\n")
    return open_tokens(path, config.tokenizer)


def _held_back(names: list[str], config: DataConfig) -> set[str]:
    """Return the documents for validation, drawn by a hash of the name alone: adding a file moves no other."""

    def drawn(name: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{config.seed}\0{name}".encode()).digest()[:8], "big") / 2**64

    few_have_none = min(names, key=drawn)
    return {name for name in names if drawn(name) < config.validation_fraction} | {few_have_none}


@dataclass(slots=True)
class Batches:
    """The batches of one run as data-parallel rank `rank` of `ranks` sees them; all `ranks` share one global batch.

    Sequence i of step s is window `order[(s * global_batch + i) mod windows]` of the training text, the order
    being drawn anew for every pass over it from (seed, pass). Nothing has to be saved to go on at a step.

    Raises:
        ConfigError: a part of the text is shorter than a sequence.
    """

    config: LlmConfig
    train: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    rank: int = 0
    ranks: int = 1
    _epoch: int = -1
    _order: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        needed = self.config.model.seq_len + 1
        for purpose, tokens in (("training", self.train), ("validation", self.validation)):
            if len(tokens) < needed:
                raise ConfigError(
                    f"data.source: {len(tokens)} tokens for {purpose}; one sequence needs {needed}, "
                    "model.seq_len and its successor"
                )

    @property
    def windows(self) -> int:
        """Sequences in one pass over the training text."""
        return (len(self.train) - 1) // self.config.model.seq_len

    @property
    def passes(self) -> float:
        """How often the run goes over the training text; above 1 it repeats itself."""
        return self.config.steps * self.config.train.global_batch / self.windows

    def batch(self, step: int) -> tuple[IntArray, IntArray]:
        """Return this rank's share of step `step`: tokens and their successors, each (B / ranks, L)."""
        share = self.config.train.global_batch // self.ranks
        first = step * self.config.train.global_batch + self.rank * share
        return self._cut(self.train, np.array([self._window(first + i) for i in range(share)]))

    @property
    def validation_rounds(self) -> int:
        """Batches of validation of the rank that has the most."""
        held = (len(self.validation) - 1) // self.config.model.seq_len
        most = -(-min(self.config.train.evaluation_sequences, held) // self.ranks)
        return -(-most // self.config.train.global_batch)

    def validation_batches(self) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield this rank's share of the fixed validation sequences, in batches of the training size.

        They lie at equal distances over the held-back text; a short one has fewer than were asked for.
        """
        held, share = (len(self.validation) - 1) // self.config.model.seq_len, self.config.train.global_batch
        n = min(self.config.train.evaluation_sequences, held)
        mine = (np.arange(n) * held // n)[self.rank :: self.ranks]
        for start in range(0, len(mine), share):
            yield self._cut(self.validation, mine[start : start + share])

    def _window(self, index: int) -> int:
        epoch, place = divmod(index, self.windows)
        if epoch != self._epoch:
            # Raw bits are the one random stream that numpy promises to keep from release to release.
            drawn = np.random.Philox(key=[self.config.data.seed, epoch]).random_raw(self.windows)
            self._epoch, self._order = epoch, np.argsort(drawn, kind="stable")
        return int(self._order[place])

    def _cut(self, tokens: NDArray[np.uint8], windows: IntArray) -> tuple[IntArray, IntArray]:
        length = self.config.model.seq_len
        cut = tokens[windows[:, None] * length + np.arange(length + 1)].astype(np.int64)
        return cut[:, :-1], cut[:, 1:]
