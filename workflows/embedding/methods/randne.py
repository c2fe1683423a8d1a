"""RandNE (ICDM 2018): a sum of powers of the adjacency times an orthogonal random matrix; rows are not normalised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workflows.embedding.config import EmbeddingConfig

if TYPE_CHECKING:
    from workflows.embedding.methods import Blocks, State
    from workflows.embedding.problem import Problem


class RandNE:
    """The state: `power`, the last S^i U_0, and `sum`. The first weight is that of U_0 itself."""

    name = "randne"
    description = "orthogonal Gaussian projection of the powers of the adjacency matrix"
    matrices, values = 2, 1

    def products(self, config: EmbeddingConfig) -> int:
        """Return the number of powers, the first being U_0."""
        return len(config.weights) - 1

    def steps(self, config: EmbeddingConfig) -> int:
        """Return the number of weights: each is a step."""
        return len(config.weights)

    def begin(self, problem: Problem) -> State:
        """Return normal numbers, orthonormal over all nodes (section 4.2)."""
        power = problem.gaussian()
        problem.orthonormalize(power)
        return {"power": power, "sum": problem.zeros()}

    def advance(self, problem: Problem, state: State, step: int) -> None:
        """Add a power. Cost: a product, but for the first."""
        if step > 1:
            for block in state["power"]:
                problem.propagator.multiply(block, block)
        problem.add_rows(state["sum"], state["power"], problem.config.embedding.weights[step - 1], unit=False)

    def result(self, problem: Problem, state: State) -> Blocks:  # noqa: ARG002
        """Return the sum."""
        return state["sum"]


METHOD = RandNE()
