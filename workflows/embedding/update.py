"""FastRP once edges have changed: only rows within reach of a changed one are multiplied again.

A run with `output.powers` leaves what that takes in its directory:

```
powers/rows.h5      fingerprints (nodes, 1): 64 bits of each row's columns and weights; what the powers depend on
       power-1.h5   vectors (nodes, dim): A L R, and so on
```
A run with `execution.update_of` compares its own fingerprints with them, so that nobody has to say what has changed.
A row of a power changes if its row of A did, or if it names a row of the power before that did; all others are read.
Which rows are multiplied makes no difference to any of them, so the result is that of a full run, bit by bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from launch.agree import on_root
from launch.rundir import make_private
from mpi_ops.columns import Columns
from mpi_ops.spmm import SpreadMatrix
from workflows.embedding import counter, methods, output
from workflows.embedding.config import EmbedConfig
from workflows.embedding.errors import GraphError
from workflows.embedding.graph import Graph, row_chunks
from workflows.embedding.methods.fastrp import FastRP
from workflows.embedding.problem import Blocks, Problem

Flags = NDArray[np.bool_]


class Update(FastRP):
    """FastRP from the powers that the run in `directory` has left.

    The state has `changed` besides, (own rows, 1): 1 where a row of the last power is not the one that was left.
    """

    def __init__(self, directory: str) -> None:
        self._powers = Path(directory) / "powers"

    def begin(self, problem: Problem) -> methods.State:
        """Return L R, and which rows of A are not as they were.

        Raises, on every rank the same:
            GraphError: there are no such powers, or they depend on something else than the configuration says.
        """
        on_root(problem.comm, lambda: self._check(problem))
        now, changed = fingerprints(problem.graph), np.ones(len(problem.graph.rows), bool)
        before = self._left("rows", "fingerprints", problem.graph.rows)[:, 0]
        changed[: len(before)] = now[: len(before)] != before
        return super().begin(problem) | {"changed": [_as_block(changed)]}

    def advance(self, problem: Problem, state: methods.State, step: int) -> None:
        """Multiply the rows that change, read the others, and add what this power counts.

        Cost: a halo exchange of one column, and a product of those rows alone.
        """
        changed = _reached(problem, state["changed"][0].numpy()[:, 0] > 0)
        matrix = _only(problem, changed)
        for block, columns in zip(state["power"], problem.widths(problem.config.embedding.dim), strict=True):
            matrix.multiply(block, block)
            left = self._left(f"power-{step}", "vectors", problem.graph.rows, columns)
            kept = ~changed[: len(left)]
            block.numpy()[: len(left)][kept] = left[kept]
        matrix.free()
        state["changed"][0].copy_(_as_block(changed))
        self.add(problem, state, step)

    def _left(self, name: str, table: str, rows: range, columns: range | None = None) -> NDArray[Any]:
        """Return the own rows of what was left; fewer, where the graph had fewer nodes."""
        with h5py.File(self._powers / f"{name}.h5", "r") as file:
            wanted = slice(None) if columns is None else slice(columns.start, columns.stop)
            found: NDArray[Any] = file[table][rows.start : rows.stop, wanted]
            return found

    def _check(self, problem: Problem) -> None:
        """Refuse powers that are not there, or of other settings."""
        config, key = problem.config, f"execution.update_of={self._powers.parent}"
        needed = ["rows", *(f"power-{step}" for step in range(1, self.steps(config.embedding) + 1))]
        for path in (self._powers / f"{name}.h5" for name in needed):
            if not path.is_file():
                raise GraphError(
                    f"{key}: has no {path.name}; a run with output.powers leaves one for each weight"
                )
        with h5py.File(self._powers / "rows.h5", "r") as file:
            before = json.loads(file.attrs["depends_on"])
        for name, value in depends_on(config, problem.graph.n_nodes).items():
            if before.get(name) != value:
                raise GraphError(
                    f"{key}: was made with {name}={before.get(name)}, this run has {value}; embed it anew"
                )


def depends_on(config: EmbedConfig, n_nodes: int) -> dict[str, Any]:
    """Return what powers depend on besides the graph; the number of nodes where the projection's density does."""
    keys = {"dim", "normalization_strength", "input_matrix", "projection", "seed"}
    found = config.embedding.model_dump(mode="json", include=keys)
    return found | ({"nodes": n_nodes} if config.embedding.projection.s == "sqrt_n" else {})


def keep_rows(directory: Path, graph: Graph, config: EmbedConfig) -> None:
    """Leave fingerprints for a later update. Raises and Cost: as `output.write_hdf5`."""
    on_root(graph.comm, lambda: make_private(directory / "powers"))
    table = output.array_table(fingerprints(graph)[:, None])
    depends = {"depends_on": json.dumps(depends_on(config, graph.n_nodes))}
    output.write_hdf5(graph, {"fingerprints": table}, directory / "powers" / "rows.h5", depends)


def keep_power(directory: Path, graph: Graph, power: Blocks, step: int) -> None:
    """Leave a power for a later update. Raises and Cost: as `output.write_hdf5`."""
    table = output.vectors_table(power)
    output.write_hdf5(graph, {"vectors": table}, directory / "powers" / f"power-{step}.h5", {})


def fingerprints(graph: Graph) -> NDArray[np.uint64]:
    """Return a hash of each own row, (own rows,): a sum over its entries, of column and weight."""
    found = np.empty(len(graph.rows), np.uint64)
    for rows, entries in row_chunks(graph.indptr):
        weight = np.ascontiguousarray(graph.weights[entries]).view(np.uint32).astype(np.uint64)
        column = counter.mix((graph.columns[entries].astype(np.uint64) + np.uint64(1)) * counter.GOLDEN)
        sums = np.concatenate(
            [np.zeros(1, np.uint64), np.cumsum(counter.mix(column ^ weight), dtype=np.uint64)]
        )
        borders = graph.indptr[rows.start : rows.stop + 1] - graph.indptr[rows.start]
        found[rows] = sums[borders[1:]] - sums[borders[:-1]]  # modulo 2^64
    return found


def _reached(problem: Problem, changed: Flags) -> Flags:
    """Return the rows that change and those that name one. Cost: a halo exchange of one column."""
    named = problem.of_columns(changed.astype(np.float64)) > 0
    before = np.concatenate([[0], np.cumsum(named)])[problem.graph.indptr]
    found: Flags = changed | (np.diff(before) > 0)
    return found


def _only(problem: Problem, rows: Flags) -> SpreadMatrix:
    """Return A without its other rows. Cost: that of Columns."""
    graph, counts = problem.graph, np.diff(problem.graph.indptr)
    kept = np.repeat(rows, counts)
    indptr = np.concatenate([[0], np.cumsum(np.where(rows, counts, 0))])
    columns = Columns(problem.comm, graph.partition, graph.columns[kept])
    return SpreadMatrix(columns, indptr, problem.values()[kept])


def _as_block(flags: Flags) -> torch.Tensor:
    return torch.from_numpy(flags.astype(np.float32))[:, None]
