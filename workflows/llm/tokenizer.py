"""From text to tokens: bytes as they are, or whatever a tokenizer of Hugging Face's library makes of UTF-8."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.errors import ConfigError
from workflows.llm.config import BYTE_VOCABULARY

Document = tuple[str, bytes]
"""Name and text."""
AT_ONCE = 256
"""Documents encoded together, by as many threads as there are cores."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What its JSON says; without one a token is a byte.

    Raises:
        ConfigError: the JSON is none of a tokenizer.
    """

    json: bytes = b""
    name: str = "byte"

    def __post_init__(self) -> None:
        if self.json:
            self._load()

    @property
    def sha256(self) -> str:
        """Of the JSON; empty for bytes."""
        return hashlib.sha256(self.json).hexdigest() if self.json else ""

    @property
    def vocab_size(self) -> int:
        """Above every token; numbers may be left out below it."""
        return 1 + max(self._load().get_vocab().values()) if self.json else BYTE_VOCABULARY

    def encode(self, documents: Iterable[Document]) -> list[NDArray[Any]]:
        """Return the tokens of each document, none reaching over its ends. Raises ConfigError if not in UTF-8."""
        if not self.json:
            return [np.frombuffer(text, np.uint8) for _, text in documents]
        tokenizer, texts = self._load(), _strings(documents, self.name)
        found: list[NDArray[Any]] = []
        while some := list(islice(texts, AT_ONCE)):
            made = tokenizer.encode_batch_fast(some, add_special_tokens=False)
            found += [np.array(each.ids, np.uint32) for each in made]
        return found

    def _load(self) -> Any:
        try:
            made = _library(self.name).Tokenizer.from_buffer(self.json)
        except Exception as error:  # the library raises nothing narrower
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"data.tokenizer={self.name}: is no tokenizer ({error})") from None
        made.no_truncation()  # a ready file may say that texts end after 512 tokens
        made.no_padding()
        return made


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a `.json` file. Raises ConfigError: it cannot be read, or is none."""
    try:
        held = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"data.tokenizer={path}: {error.strerror}") from None
    return Tokenizer(held or b"{}", str(path))  # an empty file is not the tokenizer of bytes


def train_bpe(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE of at most `vocab_size` symbols: all bytes, then the most frequent pairs.

    The same documents give the same JSON, byte for byte, whatever the number of threads. Any text in UTF-8 can
    be decoded again from its tokens. Words are cut as GPT-2 does.

    Raises:
        ConfigError: a document is not in UTF-8.
    """
    library = _library("bpe")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(_strings(documents, "bpe"), trainer)
    return Tokenizer(made.to_str().encode(), "bpe")


def _strings(documents: Iterable[Document], tokenizer: str) -> Iterator[str]:
    for name, text in documents:
        try:
            yield text.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"data.source: {name}: byte {error.start} is not UTF-8, which data.tokenizer={tokenizer} reads; "
                "`byte` reads any"
            ) from None


def _library(tokenizer: str) -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            f"data.tokenizer={tokenizer}: the package tokenizers is missing; pip install 'isoflop[run]'"
        ) from None
    return tokenizers
