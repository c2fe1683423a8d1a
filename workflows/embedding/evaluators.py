"""The scores that the Open Graph Benchmark (Hu et al., arXiv 2005.00687) ranks by, from their definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Marks = NDArray[np.bool_]
Numbers = NDArray[np.floating]


def accuracy(truth: Numbers, predicted: Numbers) -> float:
    """Return the share of right labels, the mean over tasks; both (nodes, tasks), NaN where a label is not known."""
    known = ~np.isnan(truth)
    return float((((truth == predicted) & known).sum(0) / known.sum(0)).mean())


def rocauc(truth: Numbers, score: Floats) -> list[float]:
    """Return the area under the ROC curve of each task that has labels 1 and 0; both (nodes, tasks)."""
    sides = ((score[truth[:, t] == 1, t], score[truth[:, t] == 0, t]) for t in range(truth.shape[1]))
    return [float(beaten(up, down).mean() / len(down)) for up, down in sides if len(up) and len(down)]


def beaten(up: Floats, down: Floats) -> Floats:
    """Return how many of `down` each of `up` lies above, a tie being half of one: of all pairs that is the AUC."""
    order = np.sort(down)
    below = np.searchsorted(order, up, side="left") + np.searchsorted(order, up, side="right")
    counts: Floats = below / 2
    return counts


def hits(k: int, up: Floats, down: Floats) -> Marks:
    """Return which of `up` score above the k-th best of `down`; all do where `down` has fewer."""
    if len(down) < k:
        return np.ones(len(up), bool)
    above: Marks = up > np.partition(down, -k)[-k]
    return above


def reciprocal_ranks(up: Floats, down: Floats) -> Floats:
    """Return 1 / rank of each of `up`, (n,), among its own others, (n, others); of ties it takes the middle place."""
    better = (down > up[:, None]).sum(1)
    as_good = (down >= up[:, None]).sum(1)
    ranks: Floats = 1 / (1 + (better + as_good) / 2)
    return ranks
