"""ProNE (IJCAI 2019): a sparse matrix of log ratios, factorised, then smoothed by a polynomial of the Laplacian.

Factorisation: F_ij = ln(A_ij / d_i) - ln(A_ij n_j) on the edges, where n_j is the share of negative samples,
(sum_i A_ij / d_i)^0.75 over its sum. Its leading singular vectors come from a randomised range (Halko et al. 2011)
whose only sums over nodes are of (dim, dim). Propagation: the paper's band-pass filter of the Laplacian L. The
authors' code sums Chebyshev polynomials of x = (L - mu I)^2 / 2 - I, weighted by Bessel functions, which is the series
of exp(-theta x). Here the same function is a series in polynomials of the walk P = I - L, a product each.

The state: `current` is the range, then the last polynomial, `previous` the one before, `sum` their weighted sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import Chebyshev
from numpy.typing import NDArray

from workflows.embedding.config import EmbeddingConfig
from workflows.embedding.errors import GraphError

if TYPE_CHECKING:
    from workflows.embedding.methods import Blocks, State
    from workflows.embedding.problem import Problem

RANGE_STEPS = 8
"""Power iterations of the range."""
DEGREE = 9
"""Of the filter's series: what it leaves out is 1.4e-8 of its largest value, less than fp32 can tell."""
MU, THETA = 0.2, 0.5
NEGATIVE = 0.75
"""Power of the negative samples."""


class ProNE:
    """Steps: the range, its iterations, the factorisation, and each further polynomial."""

    name = "prone"
    description = "randomised factorisation of log ratios, smoothed by Chebyshev polynomials of the Laplacian"
    matrices, values = 3, 3

    def products(self, config: EmbeddingConfig) -> int:  # noqa: ARG002
        """Return F and its transpose a range step, F first, both last, one a polynomial, and the final one."""
        return 1 + 2 * RANGE_STEPS + 2 + DEGREE + 1

    def steps(self, config: EmbeddingConfig) -> int:  # noqa: ARG002
        """Return the number of steps."""
        return 1 + RANGE_STEPS + 1 + DEGREE

    def begin(self, problem: Problem) -> State:
        """Return random columns. Raises GraphError for a directed graph."""
        _check_symmetric(problem)
        return {"current": problem.gaussian(), "previous": problem.zeros(), "sum": problem.zeros()}

    def advance(self, problem: Problem, state: State, step: int) -> None:
        """Do a step. Cost: up to two products, and up to two all-reduces of (dim, dim)."""
        current = state["current"]
        degree = step - 1 - RANGE_STEPS - 1
        if degree > 0:
            _next(problem, state, degree)
            return
        forth, back = _ratios(problem)
        if step > 1:
            _multiply(back, current)
        if degree < 0:
            _multiply(forth, current)
            problem.orthonormalize(current, passes=1 if step <= RANGE_STEPS else 2)
            return
        _factors(problem, current)
        problem.kept.clear()
        _add(state, 0)

    def result(self, problem: Problem, state: State) -> Blocks:
        """Return (I + S) = (I + D) P times the sum, in the axes of its singular vectors; rows of length 1."""
        smoothed, made = state["sum"], state["previous"]
        _walk(problem, smoothed, made, beta=0)
        half = problem.column((1 + problem.degrees) / 2)
        for block in made:
            block *= half
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
    values, basis = problem.axes(problem.gram(back, back))
    s = np.sqrt(np.clip(values, 0, None))
    safe = np.where(s > s[-1] * 1e-6, s, np.inf)
    problem.turn(back, basis / safe**1.5)  # V / sqrt(S), of the right vectors V
    _multiply(forth, back)
    problem.unit_rows(back)


def _to_factors(problem: Problem, blocks: Blocks) -> None:
    """Turn the columns into U sqrt(S) of their own singular vectors, rows of length 1."""
    values, basis = problem.axes(problem.gram(blocks, blocks))
    s = np.sqrt(np.clip(values, 0, None))[::-1]
    safe = np.where(s > s[0] * 1e-6, s, np.inf)
    problem.turn(blocks, basis[:, ::-1] / np.sqrt(safe))
    problem.unit_rows(blocks)


def _walk(problem: Problem, x: Blocks, out: Blocks, beta: float) -> None:
    """Set `out` to 2 P x + `beta` out, of the walk P = (D + I)^-1 (S + I)."""
    twice = 2 / (1 + problem.degrees)
    if "walk" not in problem.kept:
        problem.kept["walk"] = problem.propagator.like(problem.weights_times(twice))
    own = problem.column(twice)
    for block, into in zip(x, out, strict=True):
        problem.kept["walk"].multiply(block, into, beta)
        into.addcmul_(block, own)


def _next(problem: Problem, state: State, degree: int) -> None:
    """Go on from T_k and T_k-1 to T_k+1 = 2 P T_k - T_k-1, or from T_0 to T_1 = P, and add it."""
    _walk(problem, state["current"], state["previous"], beta=-1)
    state["previous"], state["current"] = state["current"], state["previous"]
    if degree == 1:
        for block in state["current"]:
            block *= 0.5
    _add(state, degree)


def _add(state: State, degree: int) -> None:
    """Add the polynomial of `degree` times its weight."""
    weight = float(Chebyshev.interpolate(band_pass, DEGREE).coef[degree])
    for total, block in zip(state["sum"], state["current"], strict=True):
        total.add_(block, alpha=weight)


def band_pass(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the filter makes of eigenvalues p of P: 1 - exp(-theta x) of x = (1 - p - mu)^2 / 2 - 1."""
    return -np.expm1(-THETA * (np.square(1 - p - MU) / 2 - 1))


METHOD = ProNE()
