"""Recursive partition (Lin, KDD 2021, arXiv 2106.10620): leaves of the graph are embedded apart, their vectors fused.

Level 1 cuts the graph into parts; the edges inside each are a leaf. Level 2 does so with the edges that were cut, and
so on, until those that are left are one leaf: each edge is in exactly one. A leaf is embedded by one rank, by FastRP,
whose R is a hash of ids, so all leaves share one basis and a node's vectors may be added: U = sum over leaves of
d_leaf / d times the leaf's, d being the weights at the node. A graph that is one leaf gets FastRP's vectors bit by bit.

The paper's text was not at hand: label propagation, the weights, and taking each edge once are choices of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflows.embedding.config import EmbeddingConfig
from workflows.embedding.methods.fastrp import METHOD as FASTRP

if TYPE_CHECKING:
    from workflows.embedding.methods import Blocks, State
    from workflows.embedding.problem import Problem


class Partitioned:
    """The state: `sum`, what levels so far add up to, and `parts` (own rows, levels), each node's part in each."""

    name = "partitioned"
    description = "FastRP of the leaves of a recursive partition, fused by degree"
    matrices, values = 1, 1

    def products(self, config: EmbeddingConfig) -> int:
        """Return the number of powers: each edge is in one leaf."""
        return FASTRP.products(config)

    def steps(self, config: EmbeddingConfig) -> int:
        """Return the number of levels."""
        return config.leaves.levels

    def begin(self, problem: Problem) -> State:
        """Return nothing summed, and the parts. Raises and Cost: as `leaves.cut`."""
        from workflows.embedding import leaves

        return {"sum": problem.zeros(), "parts": [leaves.cut(problem)]}

    def advance(self, problem: Problem, state: State, step: int) -> None:
        """Embed the leaves of a level and add their vectors. Cost: as `leaves.add`."""
        from workflows.embedding import leaves

        leaves.add(problem, state["parts"][0].numpy(), step - 1, state["sum"])

    def result(self, problem: Problem, state: State) -> Blocks:  # noqa: ARG002
        """Return the sum."""
        return state["sum"]


METHOD = Partitioned()
