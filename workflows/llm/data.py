"""Text as tokens in one memory-mapped file, and the batches of a run as a pure function of seed and step."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
        """Return the tokens of training and of validation, mapped, not loaded.

        Raises:
            ConfigError: the file is missing or not as long as its header says.
        """
        wanted = self.train_tokens + self.validation_tokens
        try:
            tokens = np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path}: {error}; remove it and its .json, and it is made again") from None
        if len(tokens) != wanted:
            raise ConfigError(f"{self.path}: holds {len(tokens)} tokens, its header says {wanted}; remove both")
        return tokens[: self.train_tokens], tokens[self.train_tokens :]


def read_documents(source: str) -> list[Document]:
    """Return (name, bytes) of every document, sorted by name; a document is a file, or a piece of a single one.

    Raises:
        ConfigError: no file is found, one cannot be read, or all are empty.
    """
    if source == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in root.rglob("*.py") if not NO_TEXT & set(path.relative_to(root).parts[:-1])]
        named = [(path.relative_to(root).as_posix(), path) for path in paths]  # wherever Python is installed
    else:
        named = [(found, Path(found)) for found in glob.glob(source, recursive=True) if not os.path.isdir(found)]
    if not named:
        raise ConfigError(f"data.source: no file '{source}'; give 'stdlib', a file, or a glob of files")
    documents = []
    for name, path in sorted(named):
        try:
            documents.append((name, path.read_bytes()))
        except OSError as error:
            raise ConfigError(f"data.source: {path}: {error.strerror}") from None
    if not any(text for _, text in documents):
        raise ConfigError(f"data.source: '{source}' holds no text, the file is empty")
    if len(documents) > 1:
        return documents
    [(name, text)] = documents
    cuts = [len(text) * piece // PIECES for piece in range(PIECES + 1)]
    return [(f"{name}#{i:02d}", text[cuts[i] : cuts[i + 1]]) for i in range(PIECES)]


def prepare_tokens(config: DataConfig, cache_dir: Path) -> TokenFile:
    """Write the token file of `config` into `cache_dir` unless it is there, and return it.

    A document is held back for validation by a hash of its name, so adding a file moves no other. Any number
    of processes may prepare at once: files are written beside their place and renamed into it.

    Raises:
        ConfigError: there is no text, or too little to train and to validate.
    """
    documents = read_documents(config.source)
    digest = hashlib.sha256()
    for name, text in documents:
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    held_back = [_drawn(name, config.seed) < config.validation_fraction for name, _ in documents]
    train = b"".join(text for (_, text), held in zip(documents, held_back, strict=True) if not held)
    validation = b"".join(text for (_, text), held in zip(documents, held_back, strict=True) if held)
    if not train or not validation:
        raise ConfigError(
            f"data.validation_fraction={config.validation_fraction} holds back {sum(held_back)} of "
            f"{len(documents)} documents; training and validation each need some text"
        )
    cut = f"{SCHEMA} {config.tokenizer} {config.validation_fraction} {config.seed} {digest.hexdigest()}"
    path = make_private(cache_dir) / f"{hashlib.sha256(cut.encode()).hexdigest()[:16]}.tokens"
    made = TokenFile(
        path,
        config.tokenizer,
        BYTE_VOCABULARY,
        digest.hexdigest(),
        len(documents),
        sum(held_back),
        len(train),
        len(validation),
    )
    if not path.exists():
        write_private(path, train + validation)
        write_private(path.with_suffix(".json"), json.dumps({**asdict(made), "path": path.name}) + "\n")
    return made


@dataclass(slots=True)
class Batches:
    """The batches of one run as rank `rank` of `ranks` sees them; the global batch is the same for any `ranks`.

    Sequence i of step s is window `order[(s * global_batch + i) mod windows]` of the training text, the order
    being drawn anew for every pass over it from (seed, pass). Nothing has to be saved to go on at a step.
    """

    config: LlmConfig
    train: NDArray[np.uint8]
    validation: NDArray[np.uint8]
    rank: int = 0
    ranks: int = 1
    _epoch: int = -1
    _order: IntArray | None = None

    def __post_init__(self) -> None:
        length = self.config.model.seq_len
        for name, tokens in (("training", self.train), ("validation", self.validation)):
            if len(tokens) <= length:
                raise ConfigError(
                    f"data.source: {len(tokens)} tokens for {name}, one sequence needs {length + 1} (model.seq_len)"
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

    def validation_batches(self) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield this rank's share of the fixed validation sequences, in batches of the training size."""
        length, share = self.config.model.seq_len, self.config.train.global_batch
        windows = np.arange(min(self.config.train.evaluation_sequences, (len(self.validation) - 1) // length))
        mine = windows[self.rank :: self.ranks]
        for start in range(0, len(mine), share):
            yield self._cut(self.validation, mine[start : start + share])

    def _window(self, index: int) -> int:
        epoch, place = divmod(index, self.windows)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.config.data.seed, epoch]))
            self._epoch, self._order = epoch, generator.permutation(self.windows)
        assert self._order is not None  # noqa: S101  (drawn just above)
        return int(self._order[place])

    def _cut(self, tokens: NDArray[np.uint8], windows: IntArray) -> tuple[IntArray, IntArray]:
        length = self.config.model.seq_len
        cut = tokens[windows[:, None] * length + np.arange(length + 1)].astype(np.int64)
        return cut[:, :-1], cut[:, 1:]


def _drawn(name: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the document's name and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "big") / 2**64
