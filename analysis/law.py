"""A law as a sum of terms, linear in its factors: the formula is written once, all that a fit needs follows from it.

    outcome = (sum_k factor_k term_k(shapes, inputs)) ^ outer        or the exponential of that sum

Factors are solved for (variable projection), shapes are searched. In the fit each input is measured in its smallest
value: a factor is then what its term adds to the smallest run. That takes the units out of the problem, and keeps
the long valleys of data that say little straight: a constant against a term whose exponent is small, and a steep term
that only the smallest runs show, which at any other reference runs off to a factor of zero with an exponent without
limit. Factors stay linear, so a term that vanishes stands at its bound of zero instead of running to minus infinity
as its logarithm would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.errors import DataError
from analysis.problem import Problem
from analysis.table import Observations

Floats = NDArray[np.float64]
Values = dict[str, Any]
GRID_POINTS = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """A parameter inside a term: where it may lie, and where the search begins."""

    low: float
    high: float
    grid: tuple[float, ...]
    of: str = ""
    """The input that it is a value of: then the coordinate is ln(value / smallest input), bounds and grid follow."""


def exponent(low: float = 1e-3, high: float = 5.0, points: int = GRID_POINTS) -> Shape:
    """Return the shape of an exponent; the search covers those that occur."""
    return Shape(low, high, tuple(np.linspace(max(low, -1.5) if low < 0 else 0.05, 1.5, points)))


def place(of: str, points: int = 12) -> Shape:
    """Return the shape of a position on the axis of an input: up to a factor of 100 outside what was measured."""
    return Shape(-np.log(100), np.log(100), tuple(np.linspace(0, 1, points)), of)


class Law(ABC):
    """A law; a subclass states what is special about it. `example` and `inputs` are typical values."""

    name: ClassVar[str]
    description: ClassVar[str]
    inputs: ClassVar[dict[str, tuple[float, float]]]
    """Symbol of each input and a typical range."""
    outcome: ClassVar[str] = "L"
    factors: ClassVar[tuple[str, ...]]
    shapes: ClassVar[dict[str, Shape]]
    example: ClassVar[dict[str, float]]
    constant: ClassVar[str] = ""
    """The factor that no outcome falls below, such as E."""
    signed: ClassVar[tuple[str, ...]] = ()
    """Factors of either sign."""
    ceiling: ClassVar[float] = float("inf")
    """What no outcome exceeds, by nature: a share of prompts solved is at most one."""
    outer: ClassVar[float | str] = 1.0
    """Exponent of the sum: a number, or the name of a shape."""
    exponential: ClassVar[bool] = False
    absolute: ClassVar[tuple[str, ...]] = ()
    """Inputs that are counts: they keep their own unit."""
    measured: ClassVar[tuple[str, ...]] = ()
    """Parameters that the caller has measured and holds."""
    same_unit: ClassVar[dict[str, str]] = {}
    """Inputs that are measured in the unit of another."""
    grouped_by: ClassVar[str] = ""
    """An input whose every value has its own copy of the parameters in `per_group`."""
    per_group: ClassVar[tuple[str, ...]] = ()
    scale: ClassVar[Literal["log", "linear"]] = "log"
    """Whether residuals are logarithms of predicted over observed, or differences."""
    delta: ClassVar[float] = 1e-3
    """Residual from which on a point pulls with constant force."""
    min_distinct: ClassVar[int] = 3
    """Values of each input that are needed."""
    trades: ClassVar[bool] = False
    """Whether it says how to divide compute between size and tokens."""

    @abstractmethod
    def terms(self, s: Values, x: Values) -> Sequence[Any]:
        """Return the term of each factor, from shapes `s` and inputs `x`; numpy functions of `analysis.jet` only."""

    def natural(self, c: Values, unit: Values) -> Values:
        """Return the parameters, as the field writes them, from the coordinates and the units of the inputs and y."""
        return dict(c)

    def coordinates(self, p: Values) -> Values:
        """Return the coordinates of the parameters where every unit is one."""
        return dict(p)

    def cautions(self, parameters: Mapping[str, float], x: Mapping[str, Floats]) -> list[str]:
        """Return what a reader must know of the law with these parameters, a sentence each."""
        return []

    def remarks(self, parameters: Mapping[str, float], x: Mapping[str, Floats]) -> dict[str, str]:
        """Return parameters that these inputs cannot determine, by the law's own rule, and why."""
        return {}

    def compute_optimal(self, parameters: Mapping[str, Floats], flops: float) -> dict[str, Floats]:
        """Return N, D and L of the best run of so many FLOPs. Raises DataError where there is no such trade."""
        raise DataError(
            f"the law '{self.name}' says nothing on how to divide compute between size and tokens"
        )

    def names(self, x: Mapping[str, Floats]) -> tuple[list[str], list[str]]:
        """Return the names of factors and shapes for these inputs, one a group where a group has its own."""
        groups = np.unique(x[self.grouped_by]) if self.grouped_by else ()

        def each(name: str) -> list[str]:
            return [f"{name}[{g:g}]" for g in groups] if name in self.per_group else [name]

        factors = [copy for name in self.factors for copy in each(name)]
        return factors, [copy for name in self.shapes for copy in each(name)]

    def bind(
        self,
        observations: Observations,
        hold: Mapping[str, float] | None = None,
        scale: str | None = None,
        tau: float = 0.5,
    ) -> Problem:
        """Return the problem of fitting these, with the parameters in `hold` fixed.

        Raises:
            DataError: the points are too few or too alike, or a parameter is held that cannot be.
        """
        if scale not in (None, "log", "linear") or not 0 < tau < 1:
            raise DataError(f"scale={scale}, tau={tau:g}: there is log and linear, and tau between 0 and 1")
        x = observations.columns(self.inputs)
        factors, shapes = self.names(x)
        held = dict(hold or {})
        self._check_hold(held, [*factors, *shapes])
        self._check_points(observations, x, len(factors) + len(shapes) - len(held))
        unit = {name: 1.0 if name in self.absolute else float(column.min()) for name, column in x.items()}
        unit.update({name: unit[other] for name, other in self.same_unit.items()})
        if self.exponential:
            y, unit["y"] = np.log(observations.y), 1.0
        else:
            unit["y"] = float(observations.y.mean() if self.outer == 1.0 else observations.y.max())
            y = observations.y / unit["y"]
        return Problem(self, factors, shapes, x, unit, y, held, scale or self.scale, tau)

    def predict(self, parameters: Mapping[str, Floats], x: Mapping[str, Floats]) -> Floats:
        """Return the outcome at inputs `x`, for parameters that broadcast with them."""
        p = self._of_groups(parameters, x) if self.grouped_by else dict(parameters)
        c = self._coordinates(p)
        terms = self.terms(c, dict(x))
        total = sum(np.asarray(c[name]) * term for name, term in zip(self.factors, terms, strict=True))
        return np.asarray(np.exp(total) if self.exponential else total ** self._outer(c))

    def _outer(self, c: Values) -> Any:
        return c[self.outer] if isinstance(self.outer, str) else self.outer

    def _coordinates(self, p: Values) -> Values:
        placed = {n: np.log(p[n]) for n, shape in self.shapes.items() if shape.of}
        return {**self.coordinates(p), **placed}

    def _natural(self, c: Values, unit: Values) -> Values:
        placed = {n: np.exp(c[n]) * unit[shape.of] for n, shape in self.shapes.items() if shape.of}
        return {**self.natural(c, unit), **placed}

    def _of_groups(self, parameters: Mapping[str, Floats], x: Mapping[str, Floats]) -> Values:
        """Return each parameter once, that of the input's own group where groups have their own."""
        p = {name: value for name, value in parameters.items() if "[" not in name}
        for name in self.per_group:
            known = [key for key in parameters if key.startswith(f"{name}[")]
            column, where = np.asarray(x[self.grouped_by]), []
            for key in known:
                where.append(np.isclose(column, float(key[len(name) + 1 : -1]), rtol=1e-4))
            p[name] = np.select(where, [parameters[key] for key in known], np.nan)
        return p

    def holds(self, name: str) -> bool:
        """Return whether a parameter can be given instead of fitted: a shape, or the constant."""
        return name.split("[")[0] in self.shapes or name == self.constant

    def own(self, hold: Mapping[str, float]) -> dict[str, float]:
        """Return those of the parameters to hold that this law can hold."""
        return {name: value for name, value in hold.items() if self.holds(name)}

    def _check_hold(self, held: Mapping[str, float], names: Sequence[str]) -> None:
        can = [n for n in names if self.holds(n)]
        for name in self.measured:
            if name not in held:
                raise DataError(f"{self.name}: {name} is measured, not fitted: hold it, as in {name}=0.2")
        for name, value in held.items():
            if name not in can:
                raise DataError(
                    f"{self.name}: '{name}' cannot be held; there is {', '.join(can) or 'none that can'}"
                )
            if not np.isfinite(value):
                raise DataError(f"{self.name}: {name} is held at {value}, a number is needed")

    def _check_points(self, observations: Observations, x: Mapping[str, Floats], free: int) -> None:
        distinct = {name: len(np.unique(column)) for name, column in x.items() if name != self.grouped_by}
        if len(observations) <= free or min(distinct.values()) < self.min_distinct:
            raise DataError(
                f"{observations.source}: {len(observations)} points with "
                + " and ".join(f"{count} distinct {name}" for name, count in distinct.items())
                + f"; the law '{self.name}' of {free} free parameters needs at least {free + 1} points, "
                + " and ".join(f"{self.min_distinct} {name}" for name in distinct)
            )


def power(x: Any, exponent: Any) -> Any:
    """Return x^-exponent."""
    return np.exp(-exponent * np.log(x))
