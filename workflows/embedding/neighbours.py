"""The nearest nodes of each node by cosine, exactly: vectors go round the ranks, and each keeps its nodes' best."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from workflows.embedding.graph import Graph
from workflows.embedding.problem import Blocks, row_norms

BATCH_NUMBERS = 1 << 22
"""Similarities that are held at once."""


def nearest(graph: Graph, blocks: Blocks, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return (ids, cosines) of the k nearest other nodes of each own node, (own rows, k), nearest first.

    Of equal ones the smaller id comes first. Where there are fewer, or a vector is zero, ids are -1 and cosines 0.

    Cost: P - 1 messages of the largest rank's vectors to the next rank.
    """
    comm, rows = graph.comm, graph.rows
    norms = row_norms(blocks, slice(0, len(rows))).float()[:, None]
    mine = torch.cat(blocks, 1) / torch.where(norms > 0, norms, 1.0)
    best = torch.full((len(rows), k), -2.0)
    ids = torch.full((len(rows), k), -1)
    travelling = mine
    for turn in range(comm.size):
        of = graph.partition.rows((comm.rank - turn) % comm.size)
        _merge(mine, travelling, rows, of, best, ids)
        if turn + 1 < comm.size:
            coming = graph.partition.rows((comm.rank - turn - 1) % comm.size)
            arrived = torch.empty(len(coming), mine.shape[1])
            comm.Sendrecv(
                travelling.numpy(),
                (comm.rank + 1) % comm.size,
                recvbuf=arrived.numpy(),
                source=(comm.rank - 1) % comm.size,
            )
            travelling = arrived
    nothing = (best < -1.5) | (norms == 0)
    ids[nothing], best[nothing] = -1, 0.0
    return ids.numpy(), best.numpy()


def _merge(
    mine: torch.Tensor, others: torch.Tensor, rows: range, of: range, best: torch.Tensor, ids: torch.Tensor
) -> None:
    """Take into `best` and `ids` what is nearer among `others`, the vectors of nodes `of`."""
    present = (others != 0).any(1)
    step = max(1, BATCH_NUMBERS // len(of))
    numbers = torch.arange(of.start, of.stop)
    for at in range(0, len(rows), step):
        batch = slice(at, min(at + step, len(rows)))
        cosines = mine[batch] @ others.T
        cosines[:, ~present] = -2.0
        own = torch.arange(rows.start + batch.start, rows.start + batch.stop)
        cosines[own[:, None] == numbers] = -2.0
        found, place = cosines.topk(min(best.shape[1], len(of)))
        every = torch.cat([best[batch], found], 1)
        named = torch.cat([ids[batch], numbers[place]], 1)
        order = torch.from_numpy(np.lexsort((named.numpy(), -every.numpy())))[:, : best.shape[1]]
        best[batch], ids[batch] = every.gather(1, order), named.gather(1, order)
