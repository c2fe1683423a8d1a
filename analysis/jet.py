"""Numbers that carry their exact first and second derivatives through numpy's functions (forward mode).

A law is then written once, as a formula over numpy functions, and its gradient and Hessian follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

Array = NDArray[Any]


class Jet(NDArrayOperatorsMixin):
    """A value (B, n), its gradient by S variables (B, n, S) and its Hessian (B, n, S, S), None where that is zero.

    Axes of length one broadcast: what does not depend on the point or on the batch is kept once.
    """

    __slots__ = ("first", "second", "value")

    def __init__(self, value: Array, first: Array, second: Array | None = None) -> None:
        self.value, self.first, self.second = value, first, second

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *args: Any) -> Any:
        return RULES[ufunc](*args)


def variables(theta: Array) -> list[Jet]:
    """Return a jet of each column of theta, (B, S)."""
    size = theta.shape[1]
    return [Jet(theta[:, i, None], np.eye(size)[None, None, i]) for i in range(size)]


def _add(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        return Jet(a.value + b, a.first, a.second)
    if a.second is None or b.second is None:
        second = b.second if a.second is None else a.second
    else:
        second = a.second + b.second
    return Jet(a.value + b.value, a.first + b.first, second)


def _multiply(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        b = np.asarray(b)
        second = None if a.second is None else a.second * b[..., None, None]
        return Jet(a.value * b, a.first * b[..., None], second)
    cross = a.first[..., :, None] * b.first[..., None, :]
    second = cross + np.swapaxes(cross, -1, -2)
    for one, other in ((a, b), (b, a)):
        if one.second is not None:
            second = second + one.second * other.value[..., None, None]
    first = a.first * b.value[..., None] + b.first * a.value[..., None]
    return Jet(a.value * b.value, first, second)


def _chain(jet: Jet, value: Array, slope: Array, bend: Array) -> Jet:
    """Return f(jet) from the value of f, its first and its second derivative."""
    second = bend[..., None, None] * (jet.first[..., :, None] * jet.first[..., None, :])
    if jet.second is not None:
        second = second + slope[..., None, None] * jet.second
    return Jet(value, slope[..., None] * jet.first, second)


def _exp(a: Jet) -> Jet:
    value = np.exp(a.value)
    return _chain(a, value, value, value)


def _expm1(a: Jet) -> Jet:
    value = np.exp(a.value)
    return _chain(a, np.expm1(a.value), value, value)


def _log(a: Jet) -> Jet:
    return _chain(a, np.log(a.value), 1 / a.value, -1 / a.value**2)


def _reciprocal(a: Jet) -> Jet:
    return _chain(a, 1 / a.value, -1 / a.value**2, 2 / a.value**3)


def _divide(a: Any, b: Any) -> Jet:
    return _multiply(a, _reciprocal(b) if isinstance(b, Jet) else 1 / np.asarray(b))


def _logaddexp(a: Any, b: Any) -> Jet:
    """Return ln(exp a + exp b), without overflow, for a number a and a jet b."""
    value = np.maximum(np.real(a), b.value.real)
    value = value + np.log(np.exp(a - value) + np.exp(b.value - value))
    share = np.exp(b.value - value)
    return _chain(b, value, share, share * (1 - share))


RULES: dict[Any, Callable[..., Jet]] = {
    np.add: _add,
    np.subtract: lambda a, b: _add(a, -1.0 * b),
    np.multiply: _multiply,
    np.divide: _divide,
    np.negative: lambda a: _multiply(a, -1.0),
    np.exp: _exp,
    np.expm1: _expm1,
    np.log: _log,
    np.logaddexp: _logaddexp,
}
"""What a law's formula may use."""
