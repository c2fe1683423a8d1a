"""Graphs of OGB's large-scale challenge, mapped from their `.npy` files, so that each rank reads its stretch of them.

MAG240M: `processed/RELATION/edge_index.npy` of each relation in `graph.relations`, numbered papers first, then authors,
then institutions. WikiKG90Mv2: heads and tails of `processed/train_hrt.npy`, whatever their relation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workflows.embedding.arrays import mapped, pieces, whole_numbers
from workflows.embedding.config import GraphConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.ogb import read_saved
from workflows.embedding.text import Edges

KINDS = ("paper", "author", "institution")
"""Of MAG240M's nodes, in the order of their numbers."""


def read_lsc(graph: GraphConfig, part: int = 0, parts: int = 1) -> Iterator[Edges]:
    """Yield the edges of one of `parts` stretches of each relation. Raises GraphError."""
    root = Path(graph.path or "")
    if _is_wiki(root):
        triples = _triples(root)
        yield from pieces(graph, triples[:, 0], triples[:, 2], None, part, parts)
        return
    counts = _counts(root)
    for relation in graph.relations:
        ends = mapped(root / "processed" / relation / "edge_index.npy")
        from_, _, to = relation.split("___")
        for edges in pieces(graph, ends[0], ends[1], None, part, parts):
            for kind, ids in ((from_, edges.source), (to, edges.target)):
                if len(ids) and ids.max() >= counts[kind]:
                    raise GraphError(f"{root}: {relation} names {kind} {ids.max()}; there are {counts[kind]}")
            yield Edges(edges.source + _first(counts, from_), edges.target + _first(counts, to))


def size(graph: GraphConfig) -> tuple[int, int]:
    """Return (nodes, edges), from the head of each file. Raises GraphError."""
    root = Path(graph.path or "")
    if _is_wiki(root):
        return int(read_saved(root / "meta.pt")["num_entities"]), len(_triples(root))
    paths = [root / "processed" / relation / "edge_index.npy" for relation in graph.relations]
    used = {
        kind for relation in graph.relations for kind in (relation.split("___")[0], relation.split("___")[2])
    }
    counts = _counts(root)
    last = max(KINDS.index(kind) for kind in used)
    return sum(counts[kind] for kind in KINDS[: last + 1]), sum(mapped(path).shape[1] for path in paths)


def _is_wiki(root: Path) -> bool:
    return (root / "processed" / "train_hrt.npy").is_file()


def _triples(root: Path) -> Any:
    """Return WikiKG90Mv2's (head, relation, tail), (triples, 3)."""
    held = whole_numbers(path := root / "processed" / "train_hrt.npy")
    if held.ndim != 2 or held.shape[1] != 3:
        raise GraphError(f"{path}: is {list(held.shape)}; it holds head, relation and tail, (triples, 3)")
    return held


def _counts(root: Path) -> dict[str, int]:
    held = read_saved(root / "meta.pt")
    if missing := [kind for kind in KINDS if kind not in held]:
        raise GraphError(
            f"{root / 'meta.pt'}: says nothing of {missing[0]}; it is neither MAG240M nor WikiKG90Mv2"
        )
    return {kind: int(held[kind]) for kind in KINDS}


def _first(counts: dict[str, int], kind: str) -> int:
    return sum(counts[each] for each in KINDS[: KINDS.index(kind)])
