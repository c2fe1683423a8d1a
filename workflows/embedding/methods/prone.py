"""ProNE (IJCAI 2019): a sparse matrix of log ratios, factorised, then smoothed by a polynomial of the Laplacian.

Factorisation: F_ij = ln(A_ij / d_i) - ln(A_ij n_j) on the edges, where n_j is the share of negative samples,
(sum_i A_ij / d_i)^0.75 over its sum. Its leading singular vectors come from a randomised range (Halko et al. 2011)
whose only sums over nodes are of (dim, dim). Propagation: a band-pass filter in Chebyshev polynomials of M = L - mu I,
with Bessel functions as weights, in the authors' recurrence.

The state: `features` is the range, then the vectors that are smoothed; `previous` and `current` are the last two
polynomials, `sum` their weighted sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workflows.embedding.config import EmbeddingConfig
from workflows.embedding.errors import GraphError

if TYPE_CHECKING:
    from workflows.embedding.methods import Blocks, State
    from workflows.embedding.problem import Problem

RANGE_STEPS = 8
"""Power iterations of the range."""
ORDER = 10
"""Chebyshev polynomials."""
MU, THETA = 0.2, 0.5
NEGATIVE = 0.75
"""Power of the negative samples."""


class ProNE:
    """Steps: the range, its iterations, the factorisation with the first polynomials, and each further polynomial."""

    name = "prone"
    description = "randomised factorisation of log ratios, smoothed by Chebyshev polynomials of the Laplacian"
    matrices, values = 5, 3

    def products(self, config: EmbeddingConfig) -> int:  # noqa: ARG002
        """Return F and its transpose a range step, two products a polynomial, and the last one."""
        return 2 + 2 * RANGE_STEPS + 2 * (ORDER - 1) + 1

    def steps(self, config: EmbeddingConfig) -> int:  # noqa: ARG002
        """Return the number of steps."""
        return 1 + RANGE_STEPS + 1 + ORDER - 2

    def begin(self, problem: Problem) -> State:
        """Return random features. Raises GraphError for a directed graph."""
        _check_symmetric(problem)
        state = {name: problem.zeros() for name in ("previous", "current", "sum")}
        return {"features": problem.gaussian(), **state}

    def advance(self, problem: Problem, state: State, step: int) -> None:
        """Do a step. Cost: two products, and up to two all-reduces of (dim, dim)."""
        features = state["features"]
        if step <= 1 + RANGE_STEPS + 1:
            forth, back = _ratios(problem)
            if step > 1:
                _multiply(back, features)
            if step <= 1 + RANGE_STEPS:
                _multiply(forth, features)
                problem.orthonormalize(features, passes=1 if step <= RANGE_STEPS else 2)
                return
            _factors(problem, features)
            problem.kept.clear()
            _first(problem, state)
            return
        _next(problem, state, step - RANGE_STEPS - 1)

    def result(self, problem: Problem, state: State) -> Blocks:
        """Return (I + S)(features - sum), in the axes of its singular vectors; rows of length 1."""
        made, smoothed = state["features"], state["sum"]
        for block, less in zip(made, smoothed, strict=True):
            block -= less
            product = block.clone()
            problem.propagator.multiply(product, product)
            product *= problem.column(problem.degrees)
            block += product
        _to_factors(problem, made)
        return made


def _multiply(matrix: object, blocks: Blocks) -> None:
    for block in blocks:
        matrix.multiply(block, block)  # type: ignore[attr-defined]


def _check_symmetric(problem: Problem) -> None:
    """Refuse a directed graph: x^T S y = y^T S x for two random columns, but for rounding."""
    x = problem.gaussian(1)[0]
    d = problem.column(problem.degrees)
    ones = x * 0 + 1
    product, of_ones = x.clone(), ones.clone()
    for vector in (product, of_ones):
        problem.propagator.multiply(vector, vector)
        vector *= d
    one, other = problem.gram([ones], [product])[0, 0], problem.gram([x], [of_ones])[0, 0]
    size = math.sqrt(problem.gram([x], [x])[0, 0] * problem.gram([of_ones], [of_ones])[0, 0])
    if abs(one - other) > 1e-4 * size:
        raise GraphError(
            "embedding.method=prone takes an undirected graph: graph.direction: both makes it one"
        )


def _ratios(problem: Problem) -> tuple[object, object]:
    """Return F and its transpose, kept until the factorisation is done."""
    if "forth" not in problem.kept:
        d = problem.degrees
        own = -np.log(np.where(d > 0, d, 1.0))  # ln(A/d) - ln(A n): the weight itself cancels
        shares = problem.column(np.where(d > 0, 1.0, 0.0))
        problem.multiply_transposed(shares)
        share = shares[:, 0].double().numpy() ** NEGATIVE
        total = problem.comm.allreduce(float(share.sum()))
        negative = -np.log(np.where(share > 0, share, total) / total)
        counts = np.diff(problem.graph.indptr)
        for name, rows, columns in (("forth", own, negative), ("back", negative, own)):
            values = problem.of_columns(columns)
            values += np.repeat(rows.astype(np.float32), counts)
            problem.kept[name] = problem.propagator.like(values)
    return problem.kept["forth"], problem.kept["back"]


def _factors(problem: Problem, back: Blocks) -> None:
    """Turn W = F^T Q, of an orthonormal Q, into U sqrt(S), rows of length 1.

    F is Q W^T, so with W = V S P^T its right vectors are V, and F V = U S.
    """
    forth, _ = _ratios(problem)
    values, basis = np.linalg.eigh(problem.gram(back, back))
    s = np.sqrt(np.clip(values, 0, None))
    safe = np.where(s > s[-1] * 1e-6, s, np.inf)
    problem.turn(back, basis / safe)  # V, the right vectors
    _multiply(forth, back)  # U S
    problem.turn(back, np.diag(1 / np.sqrt(safe)))
    problem.unit_rows(back)


def _to_factors(problem: Problem, blocks: Blocks) -> None:
    """Turn the columns into U sqrt(S) of their own singular vectors, rows of length 1."""
    values, basis = np.linalg.eigh(problem.gram(blocks, blocks))
    s = np.sqrt(np.clip(values, 0, None))[::-1]
    safe = np.where(s > s[0] * 1e-6, s, np.inf)
    problem.turn(blocks, basis[:, ::-1] / np.sqrt(safe))
    problem.unit_rows(blocks)


def _shifted(problem: Problem, x: Blocks, into: Blocks) -> None:
    """Set `into` to M x = (1 - mu) x - (D + I)^-1 (S + I) x."""
    d = problem.degrees
    scaled, own = problem.column(d / (1 + d)), problem.column(1 - MU - 1 / (1 + d))
    for block, out in zip(x, into, strict=True):
        problem.propagator.multiply(block, out)
        out *= -scaled
        out.addcmul_(block, own)


def _first(problem: Problem, state: State) -> None:
    """Set the first two polynomials, features and M^2 / 2 features - features, and their weighted sum."""
    features, previous, current, total = (state[k] for k in ("features", "previous", "current", "sum"))
    _shifted(problem, features, previous)
    _shifted(problem, previous, current)
    for a, b, c, t in zip(features, previous, current, total, strict=True):
        c.mul_(0.5).sub_(a)
        b.copy_(a)
        t.copy_(a).mul_(bessel(0)).sub_(c, alpha=2 * bessel(1))


def _next(problem: Problem, state: State, order: int) -> None:
    """Add polynomial `order`: M^2 T_1 - 2 T_1 - T_0, as the authors' code has it."""
    previous, current, total = (state[k] for k in ("previous", "current", "sum"))
    made = problem.zeros()
    for block, out in zip(current, made, strict=True):
        _shifted(problem, [block], [out])
        _shifted(problem, [out.clone()], [out])
    sign = 2 * bessel(order) * (1 if order % 2 == 0 else -1)
    for before, now, new, t in zip(previous, current, made, total, strict=True):
        new.sub_(now, alpha=2).sub_(before)
        t.add_(new, alpha=sign)
        before.copy_(now)
        now.copy_(new)


def bessel(order: int) -> float:
    """Return the modified Bessel function I_order(THETA), by its series."""
    terms = (
        (THETA / 2) ** (2 * k + order) / (math.factorial(k) * math.factorial(k + order)) for k in range(30)
    )
    return math.fsum(terms)


METHOD = ProNE()
