"""A law bound to data: starts, bounds, residuals with their derivatives, all that a fit needs of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.jet import Jet, variables

if TYPE_CHECKING:
    from analysis.law import Law, Shape

Floats = NDArray[np.float64]
Values = dict[str, Any]
N_STARTS = 16


@dataclass(frozen=True, slots=True)
class Problem:
    """A law bound to data; coordinates are its factors, then its shapes. Every array has a leading batch axis."""

    law: Law
    factors: list[str]
    shapes: list[str]
    x: dict[str, Floats]
    unit: dict[str, float]
    y: Floats
    """Outcomes over their unit, or their logarithms for an exponential law."""
    held: dict[str, float]
    scale: str
    tau: float = 0.5
    """Share of the pull that points above the law have: below a half, it runs through the better runs."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the coordinates."""
        return (*self.factors, *self.shapes)

    @property
    def plain(self) -> bool:
        """Whether a residual is the difference of the sum and `y`, not of their logarithms."""
        return self.law.exponential or self.scale == "linear"

    def starts(self, count: int = N_STARTS) -> Floats:
        """Return up to `count` starting points, the best first, (K, P): on a grid of shapes, solve for the factors."""
        from scipy.optimize import nnls

        low, high = self.bounds()
        split = len(self.factors)
        fixed = np.flatnonzero(low[:split] == high[:split])
        free = np.flatnonzero(low[:split] < high[:split])
        both = free[low[free] < 0]
        found = []
        for point in itertools.product(*(self._grid(name) for name in self.law.shapes)):
            s = {n: v for name, v in zip(self.law.shapes, point, strict=True) for n in self._copies(name)}
            columns, right = np.stack(self._values(s), axis=1), self.y
            if not self.plain:  # relative errors, and of the sum before its exponent
                right = np.ones_like(self.y)
                columns = columns / (self.y ** (1 / self.law._outer(s)))[:, None]
            right = right - columns[:, fixed] @ low[fixed]
            if not np.isfinite(columns).all():
                continue
            solved, error = nnls(np.concatenate([columns[:, free], -columns[:, both]], axis=1), right)
            factors = low[:split].copy()
            factors[free] = solved[: len(free)]
            factors[both] -= solved[len(free) :]
            found.append((error, (*factors, *(s[name] for name in self.shapes))))
        found.sort(key=lambda start: start[0])
        return np.asarray(np.clip([theta for _, theta in found[:count]], low, high))

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the lowest and highest coordinates, (P,), equal where held; factors reach 10 times the outcome."""
        outer = self.law.outer if isinstance(self.law.outer, float) else 1.0
        top = 10 * float((np.abs(self.y) ** (1 / outer)).max())
        pairs = [self._factor_bounds(name, top) for name in self.factors]
        for name in self.shapes:
            shape = self.law.shapes[name.split("[")[0]]
            held = name in self.held
            pairs.append((self._held_at(name),) * 2 if held else (shape.low, shape.high + self._reach(shape)))
        low, high = np.array(pairs, dtype=float).T
        return low, high

    def residual(self, theta: Floats) -> tuple[Floats, Floats]:
        """Return ln(predicted) - ln(observed), or their difference, (B, n), and its derivatives, (B, n, P)."""
        total, slopes, _ = self._sum(theta)
        if self.plain:
            return total - self.y, slopes
        with np.errstate(divide="ignore", invalid="ignore"):
            outer, at = self._outer(theta)
            log_total, slopes = np.log(total), outer[..., None] * slopes / total[..., None]
            if at is not None:
                slopes[..., at] += log_total
            return outer * log_total - np.log(self.y), slopes

    def side(self, residual: Floats) -> Floats | float:
        """Return what the pull of each residual is multiplied by: 2 tau above the law, 2 (1 - tau) below it."""
        return 1.0 if self.tau == 0.5 else np.where(residual > 0, 2 * (1 - self.tau), 2 * self.tau)

    def curvature(self, theta: Floats, weight: Floats) -> Floats:
        """Return sum_i weight_i times the Hessian of residual i, (B, P, P), for weights (B, n)."""
        total, slopes, terms = self._sum(theta)
        if self.plain:
            return self._bend(theta, terms, weight)
        outer, at = self._outer(theta)
        slopes = slopes / total[..., None]
        bent = self._bend(theta, terms, weight * outer / total)
        bent -= np.einsum("bn,bni,bnj->bij", weight * outer, slopes, slopes, optimize=True)
        if at is not None:
            cross = np.einsum("bn,bni->bi", weight, slopes)
            bent[:, at, :] += cross
            bent[:, :, at] += cross
        return bent

    def natural(self, theta: Floats) -> Floats:
        """Return the law's own parameters, in the order of `parameters`, (B, P)."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found: Values = {}
            c = dict(zip(self.parameters, theta.T, strict=True))
            for suffix in self._suffixes():
                own = {n: c.get(n, c.get(n + suffix)) for n in (*self.law.factors, *self.law.shapes)}
                for name, value in self.law._natural(own, self.unit).items():
                    found[name + suffix if name in self.law.per_group else name] = value
            return np.stack([found[name] for name in self.parameters], axis=1)

    def _suffixes(self) -> list[str]:
        if not self.law.grouped_by:
            return [""]
        return [f"[{group:g}]" for group in np.unique(self.x[self.law.grouped_by])]

    def _scaled(self) -> Values:
        return {name: column / self.unit[name] for name, column in self.x.items()}

    def _factor_bounds(self, name: str, top: float) -> tuple[float, float]:
        base = name.split("[")[0]
        if name in self.held:
            return (self.held[name] / self.unit["y"],) * 2
        if base != self.law.constant and np.isfinite(self.law.ceiling):
            return 0.0, (self.law.ceiling - self.held.get(self.law.constant, 0.0)) / self.unit["y"]
        if base in self.law.signed:
            return -100 * top, 100 * top
        return 0.0, 1.1 * float(self.y.min()) if base == self.law.constant else top

    def _held_at(self, name: str) -> float:
        of, value = self.law.shapes[name.split("[")[0]].of, self.held[name]
        return float(np.log(value / self.unit[of])) if of else value

    def _reach(self, shape: Shape) -> float:
        """Return the length of the axis that a place lies on, in logarithms."""
        return float(np.log(self.x[shape.of].max() / self.unit[shape.of])) if shape.of else 0.0

    def _grid(self, name: str) -> Sequence[float]:
        shape = self.law.shapes[name]
        if name in self.held:
            return [self._held_at(name)]
        return [value * self._reach(shape) for value in shape.grid] if shape.of else shape.grid

    def _copies(self, name: str) -> list[str]:
        return [name + end for end in self._suffixes()] if name in self.law.per_group else [name]

    def _outer(self, theta: Floats) -> tuple[Floats, int | None]:
        """Return the exponent of the sum, (B, 1), and which coordinate it is, None for a number."""
        if not isinstance(self.law.outer, str):
            return np.array([[self.law.outer]]), None
        at = self.parameters.index(self.law.outer)
        return theta[:, at, None], at

    def _values(self, s: Values) -> list[Any]:
        """Return the term of each factor, shapes and factors expanded to the groups that have their own."""
        scaled, law = self._scaled(), self.law
        in_group: list[Any] = [1.0]
        if law.grouped_by:
            column = self.x[law.grouped_by]
            in_group = [(column == group).astype(float) for group in np.unique(column)]
        own = {
            name: sum(s[copy] * mask for copy, mask in zip(self._copies(name), in_group, strict=True))
            if name in law.per_group
            else s[name]
            for name in law.shapes
        }
        found = []
        for name, term in zip(law.factors, law.terms(own, scaled), strict=True):
            copies = [term * mask for mask in in_group] if name in law.per_group else [term]
            found += [
                copy if isinstance(copy, Jet) else np.broadcast_to(copy, self.y.shape) for copy in copies
            ]
        return found

    def _sum(self, theta: Floats) -> tuple[Floats, Floats, Any]:
        """Return the sum of the terms (B, n), its derivatives (B, n, P) and the terms themselves."""
        split, n = len(self.factors), len(self.y)
        s = dict(zip(self.shapes, variables(theta[:, split:]), strict=True))
        terms = self._values(s)
        slopes = np.zeros((len(theta), n, theta.shape[1]), dtype=theta.dtype)
        for k, term in enumerate(terms):
            slopes[..., k] = term.value if isinstance(term, Jet) else term
            if isinstance(term, Jet):
                slopes[..., split:] += theta[:, k, None, None] * term.first
        total = np.einsum("bk,bnk->bn", theta[:, :split], slopes[..., :split])
        return total, slopes, terms

    def _bend(self, theta: Floats, terms: Sequence[Any], pull: Floats) -> Floats:
        """Return sum_i pull_i times the Hessian of the sum at point i, (B, P, P)."""
        split, size = len(self.factors), theta.shape[1]
        bent = np.zeros((len(theta), size, size), dtype=np.result_type(theta, pull))
        for k, term in enumerate(terms):
            if not isinstance(term, Jet):
                continue
            first = np.broadcast_to(term.first, (len(theta), len(self.y), size - split))
            cross = (pull[:, None, :] @ first)[:, 0]
            bent[:, k, split:] += cross
            bent[:, split:, k] += cross
            if term.second is not None:
                flat = np.broadcast_to(term.second, (*first.shape, size - split)).reshape(
                    *first.shape[:2], (size - split) ** 2
                )
                part = (pull[:, None, :] @ flat)[:, 0].reshape(len(theta), size - split, size - split)
                bent[:, split:, split:] += theta[:, k, None, None] * part
        return bent
