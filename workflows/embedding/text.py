"""Edge lists as text: any stretch of bytes of a file as edges. A line belongs to the stretch that it begins in.

Plain reads at byte offsets, since stretches do not overlap; so `plan` reads a file by the same code, without MPI.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.embedding.config import GraphConfig
from workflows.embedding.errors import GraphError

LARGEST_ID = 2**48
NEWLINE, SPACE = 10, 32
Ids = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Edges:
    """Some edges: ids of their ends (edges,), and weights (edges,) or None for weight 1."""

    source: NDArray[np.integer]
    target: NDArray[np.integer]
    weight: NDArray[np.float32] | None = None
    names: dict[int, bytes] | None = None
    """Where ids are words: the word behind each number."""

    def __len__(self) -> int:
        return len(self.source)


def file_size(path: Path) -> int:
    """Return the bytes of a file. Raises GraphError when it cannot be read or is empty."""
    try:
        with path.open("rb") as file:
            n_bytes = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise GraphError(f"graph.path: {path}: {error.strerror}") from None
    if not n_bytes:
        raise GraphError(f"{path}: is empty, a graph needs at least one edge")
    return n_bytes


def read_text(graph: GraphConfig, part: int = 0, parts: int = 1) -> Iterator[Edges]:
    """Yield the edges of one of `parts` stretches of a text file, about `chunk_bytes` of it at a time.

    Raises:
        GraphError: a line that is no edge; the sentence names file, line and what is wrong.
    """
    path = Path(graph.path or "")
    n_bytes = file_size(path)
    with path.open("rb") as file:
        for _ in range(graph.header_lines):
            file.readline(graph.chunk_bytes)
        body = file.tell()
        first, last = (body + (n_bytes - body) * each // parts for each in (part, part + 1))
        at = _line_from(file.fileno(), body, first, graph.chunk_bytes)
        while at < last:
            text = _whole_lines(file.fileno(), path, at, min(graph.chunk_bytes, last - at), graph.chunk_bytes)
            lines = _Lines(graph, path, at, text)
            if len(edges := lines.edges()):
                yield edges
            at += len(text)


def _line_from(descriptor: int, body: int, first: int, step: int) -> int:
    """Return where the first line begins at or after byte `first`; one begins at `body`."""
    at = max(body, first - 1)
    while first > body:
        text = os.pread(descriptor, step, at)
        if not text:
            break
        if (end := text.find(b"\n")) >= 0:
            return at + end + 1
        at += len(text)
    return at


def _whole_lines(descriptor: int, path: Path, at: int, n_bytes: int, longest: int) -> bytes:
    """Return about `n_bytes` from byte `at`, on to the end of the last line that begins in them."""
    text = os.pread(descriptor, n_bytes, at)
    while not text.endswith(b"\n"):
        more = os.pread(descriptor, 4096, at + len(text))
        end = more.find(b"\n")
        text += more[: end + 1] if end >= 0 else more
        if not more or end >= 0:
            break
        if len(text) > n_bytes + longest:
            raise GraphError(
                f"{path}: a line from byte {at:,} on is longer than {longest:,} bytes: no edge list"
            )
    return text


class _Lines:
    """Some whole lines of a file, from byte `at`."""

    def __init__(self, graph: GraphConfig, path: Path, at: int, text: bytes) -> None:
        self._graph, self._path, self._at, self._original = graph, path, at, text
        self._columns = 3 if graph.weighted else 2
        self._text = self._blanked(text)

    def edges(self) -> Edges:
        """Return the edges. Raises GraphError for the first line that is none."""
        if self._graph.ids == "string":
            return self._words()
        numbers = self._numbers()
        if numbers is None:
            raise self._fault()
        ids = numbers.reshape(-1, self._columns)
        pair = ids[:, :2].astype(np.int64, copy=False)
        weight = ids[:, 2].astype(np.float32) if self._graph.weighted else None
        wrong = (pair < 0) | (pair >= min(LARGEST_ID, self._graph.nodes or LARGEST_ID))
        bad_weight = weight is not None and not (np.isfinite(weight) & (weight > 0)).all()
        if wrong.any() or bad_weight or (self._graph.weighted and (pair != ids[:, :2]).any()):
            raise self._fault()
        return Edges(pair[:, 0], pair[:, 1], weight)

    def _blanked(self, text: bytes) -> bytes:
        """Return the text at the same length, with delimiters and comments as spaces."""
        comment = self._graph.comment.encode()
        kept = bytearray(text)
        found = text.find(comment)
        while found >= 0:
            begin = text.rfind(b"\n", 0, found) + 1
            if text[begin:found].isspace() or begin == found:
                end = text.find(b"\n", found)
                end = len(text) if end < 0 else end
                kept[begin:end] = b" " * (end - begin)
                found = end
            found = text.find(comment, found + 1)
        if self._graph.delimiter:
            return bytes(kept).replace(self._graph.delimiter.encode(), b" ")
        return bytes(kept)

    def _numbers(self) -> NDArray[np.int64] | NDArray[np.float64] | None:
        """Return all numbers, one line after the other, None unless every line has as many as it should."""
        words = self._count()
        if not words:
            return None if words is None else np.empty(0, np.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                kind = np.float64 if self._graph.weighted else np.int64
                found: NDArray[Any] = np.fromstring(self._text, kind, sep=" ")
            except (ValueError, DeprecationWarning):
                return None
        return found if len(found) == words else None

    def _count(self) -> int | None:
        """Return the number of words, None unless every line has all its columns and no more, or nothing."""
        raw = np.frombuffer(self._text, np.uint8)
        filled = raw > SPACE
        begins = filled.copy()
        begins[1:] &= ~filled[:-1]
        ends = np.flatnonzero(raw == NEWLINE)
        words = np.add.reduceat(begins, np.concatenate([[0], ends]), dtype=np.int64)
        return int(words.sum()) if np.isin(words, (0, self._columns)).all() else None

    def _words(self) -> Edges:
        if self._count() is None:
            raise self._fault()
        words = self._text.split()
        names = {word_id(word): word for k in range(2) for word in words[k :: self._columns]}
        ends = [np.array([word_id(word) for word in words[k :: self._columns]], np.uint64) for k in range(2)]
        weight = None
        if self._graph.weighted:
            try:
                weight = np.array(words[2 :: self._columns], dtype="S").astype(np.float32)
            except ValueError:
                raise self._fault() from None
            if not (np.isfinite(weight) & (weight > 0)).all():
                raise self._fault()
        return Edges(ends[0], ends[1], weight, names)

    def _fault(self) -> GraphError:
        """Return what is wrong with the first line that is no edge."""
        originals = self._original.split(b"\n")
        for number, line in enumerate(self._text.split(b"\n")):
            if words := line.split():
                wrong = self._wrong(words)
                if wrong:
                    place = self._line_of(self._at) + number
                    shown = originals[number][:60].decode(errors="replace").strip()
                    return GraphError(f"{self._path}:{place}: '{shown}': {wrong}")
        return GraphError(f"{self._path}: bytes {self._at:,} and on cannot be read as edges")

    def _wrong(self, words: list[bytes]) -> str | None:
        columns = "two node ids and a weight" if self._graph.weighted else "two node ids"
        if len(words) != self._columns:
            more = (
                "; graph.weighted takes a third"
                if len(words) == 3 and self._columns == 2
                else "; the file may be cut off here"
                if len(words) < self._columns
                else ""
            )
            return f"{len(words)} columns, an edge has {self._columns}: {columns}{more}"
        if self._graph.ids == "integer":
            for word in words[:2]:
                if not word.isdigit():
                    shown = word.decode(errors="replace")
                    return f"'{shown}' is no node id; ids are 0, 1, 2 ..., others need graph.ids: string"
                if int(word) >= (self._graph.nodes or LARGEST_ID):
                    named = f"graph.nodes={self._graph.nodes}" if self._graph.nodes else "2^48"
                    return f"node id {int(word)} is out of range: ids are below {named}"
        if self._graph.weighted:
            try:
                value = float(words[2])
            except ValueError:
                return f"'{words[2].decode(errors='replace')}' is no weight"
            if not 0 < value < float("inf"):
                return f"weight {value:g}; weights are positive and finite"
        return None

    def _line_of(self, at: int) -> int:
        """Return the number, from 1, of the line that begins at byte `at`."""
        lines = 1
        with self._path.open("rb") as file:
            while file.tell() < at:
                lines += file.read(min(1 << 20, at - file.tell())).count(b"\n")
        return lines


def word_id(word: bytes) -> int:
    """Return the 64-bit number of a word: its hash, so that every rank gives it the same one."""
    return int.from_bytes(blake2b(word, digest_size=8).digest(), "little")
