"""FastRP (arXiv 1908.11512): U = sum of w_i rownorm(A^i L R), a very sparse random projection of transition powers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workflows.embedding.config import EmbeddingConfig

if TYPE_CHECKING:
    from workflows.embedding.methods import Blocks, State
    from workflows.embedding.problem import Problem


class FastRP:
    """The state: `power`, the last A^i L R, and `sum`, what counts of the powers so far."""

    name = "fastrp"
    description = "random projection of the powers of the transition matrix"

    matrices, values = 2, 1

    def products(self, config: EmbeddingConfig) -> int:
        """Return the number of powers."""
        return len(config.weights)

    def steps(self, config: EmbeddingConfig) -> int:
        """Return the number of powers."""
        return len(config.weights)

    def begin(self, problem: Problem) -> State:
        """Return L R, of which L = D^beta: the paper's constant (2m)^-beta cancels where rows are scaled."""
        embedding = problem.config.embedding
        scale = np.where(problem.degrees > 0, problem.degrees, 1.0) ** embedding.normalization_strength
        power = problem.projection(scale)
        total = problem.zeros()
        if embedding.self_influence:
            problem.add_rows(total, power, embedding.self_influence, embedding.row_l2)
        return {"power": power, "sum": total}

    def advance(self, problem: Problem, state: State, step: int) -> None:
        """Multiply by A once more and add what this power counts. Cost: a product."""
        for block in state["power"]:
            problem.propagator.multiply(block, block)
        self.add(problem, state, step)

    def add(self, problem: Problem, state: State, step: int) -> None:
        """Add what the power of `step` counts."""
        weight = problem.config.embedding.weights[step - 1]
        if weight:
            problem.add_rows(state["sum"], state["power"], weight, problem.config.embedding.row_l2)

    def result(self, problem: Problem, state: State) -> Blocks:  # noqa: ARG002
        """Return the sum."""
        return state["sum"]


METHOD = FastRP()
