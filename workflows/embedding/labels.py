"""Labels of nodes: from MATLAB, from lists of communities, or from lines of node and label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from workflows.embedding.config import ClassificationConfig
from workflows.embedding.convert import converted_path
from workflows.embedding.errors import GraphError


@dataclass(frozen=True, slots=True)
class Labels:
    """The labelled nodes, ascending, and which of the classes each has, (nodes, classes)."""

    nodes: NDArray[np.int64]
    marks: NDArray[np.bool_]


def read_labels(config: ClassificationConfig, cache_dir: Path, n_nodes: int) -> Labels:
    """Return the labels of `config`; those of a MATLAB file stand in the form that `prepare` made of it.

    Raises:
        GraphError: a line that is no label, or of a node that is not there; with file and line.
    """
    path = Path(config.labels)
    try:
        if path.suffix == ".mat":
            with h5py.File(converted_path(config.labels, cache_dir), "r") as file:
                pairs = file["labels"][:]
        elif path.suffix == ".cmty":
            pairs = _communities(path)
        else:
            pairs = _lines(path, config)
    except OSError as error:
        raise GraphError(f"eval.classification.labels: {path}: {error.strerror or error}") from None
    beyond = pairs[(pairs[:, 0] < 0) | (pairs[:, 0] >= n_nodes)]
    if len(beyond):
        raise GraphError(
            f"{path}: node {beyond[0, 0]} has a label, but the graph's nodes are 0 to {n_nodes - 1}"
        )
    nodes, row = np.unique(pairs[:, 0], return_inverse=True)
    classes, column = np.unique(pairs[:, 1], return_inverse=True)
    marks = np.zeros((len(nodes), len(classes)), bool)
    marks[row, column] = True
    return Labels(nodes, marks)


def _communities(path: Path) -> NDArray[np.int64]:
    """Return (node, label) of a file with a line of node ids for each label."""
    found = []
    for label, line in enumerate(path.read_text().splitlines()):
        found += [(_id(path, label + 1, word), label) for word in line.split()]
    return np.array(found, np.int64).reshape(-1, 2)


def _lines(path: Path, config: ClassificationConfig) -> NDArray[np.int64]:
    """Return (node, label) of a file with a line `node label` for each, whatever the labels are called."""
    names: dict[str, int] = {}
    found = []
    for number, line in enumerate(
        path.read_text().splitlines()[config.header_lines :], config.header_lines + 1
    ):
        words = line.split(config.delimiter)
        if not words or line.startswith("#"):
            continue
        if len(words) != 2:
            raise GraphError(f"{path}:{number}: '{line[:60]}': a line is a node id and a label")
        found.append((_id(path, number, words[0]), names.setdefault(words[1], len(names))))
    return np.array(found, np.int64).reshape(-1, 2)


def _id(path: Path, line: int, word: str) -> int:
    if not word.strip().isdigit():
        raise GraphError(f"{path}:{line}: '{word}' is no node id")
    return int(word)
