"""The methods, each a file with a `METHOD` that advances a state step by step: any step may be the last before a kill.

A method needs no torch and no MPI of its own, so that a plan can ask what it costs: it works through a `Problem`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from workflows.embedding.config import EmbeddingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from workflows.embedding.problem import Problem

    Blocks = list[Tensor]
    """A matrix (own rows, columns), cut into blocks of columns."""
    State = dict[str, Blocks]


class Method(Protocol):
    """A way to embed a graph. Ranks call it alike; what it holds between steps is in the state alone."""

    name: str
    description: str

    matrices: int
    """Of (nodes, dim) that the state and a step hold at once."""
    values: int
    """Sparse matrices at once, each with a value for each entry of the graph."""

    def products(self, config: EmbeddingConfig) -> int:
        """Return how often `dim` columns are multiplied by a sparse matrix, in all."""
        ...

    def steps(self, config: EmbeddingConfig) -> int:
        """Return how many steps it takes."""
        ...

    def begin(self, problem: Problem) -> State:
        """Return the state before the first step."""
        ...

    def advance(self, problem: Problem, state: State, step: int) -> None:
        """Do step `step`, from 1, on the state in place."""
        ...

    def result(self, problem: Problem, state: State) -> Blocks:
        """Return the vectors; the state may be used up."""
        ...


def get(name: str) -> Method:
    """Return the method called `name`, one of `config.METHODS`."""
    found: Method = import_module(f"{__name__}.{name}").METHOD
    return found
