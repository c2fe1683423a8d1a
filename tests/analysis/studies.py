"""Synthetic studies: a law's outcomes on a grid of its inputs, with noise or without."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis import Observations, laws

TRUTH = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}
POINTS = {1: 24, 2: 7, 3: 5}
"""Values of each input of a law with so many."""


def losses(law: str, truth: Mapping[str, float], N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return outcomes(law, truth, {"N": N, "D": D})


def outcomes(law: str, truth: Mapping[str, float], x: Mapping[str, np.ndarray]) -> np.ndarray:
    return laws.get(law).predict({name: np.asarray(value) for name, value in truth.items()}, x)


def observe(N: np.ndarray, D: np.ndarray, L: np.ndarray) -> Observations:
    return Observations.of_runs(N, D, L, tuple(f"run {i}" for i in range(len(L))), "simulated")


def measure(law: str, x: Mapping[str, np.ndarray], y: np.ndarray) -> Observations:
    """Return observations of any law's outcome."""
    labels = tuple(f"row {i}" for i in range(len(y)))
    return Observations(dict(x), y, labels, "simulated", laws.get(law).outcome)


def typical(law: str, noise: float = 0.0, seed: int = 3) -> Observations:
    """Return the law's own example on a grid over its typical inputs; its groups are those of the example."""
    chosen = laws.get(law)
    axes = [
        np.array([float(name.split("[")[1][:-1]) for name in chosen.example if "[" in name])
        if symbol == chosen.grouped_by
        else np.geomspace(*ends, POINTS[len(chosen.inputs)])
        for symbol, ends in chosen.inputs.items()
    ]
    grid = np.meshgrid(*map(np.unique, axes))
    x = {symbol: column.ravel() for symbol, column in zip(chosen.inputs, grid, strict=True)}
    y = outcomes(law, chosen.example, x)
    return measure(law, x, y * np.exp(noise * np.random.default_rng(seed).standard_normal(len(y))))


def grid(sizes: int = 5, lengths: int = 4) -> tuple[np.ndarray, np.ndarray]:
    N, D = np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(1e9, 1e11, lengths))
    return N.ravel(), D.ravel()


def study(seed: int, sizes: int = 5, lengths: int = 4, noise: float = 0.01, **changed: float) -> Observations:
    """Return a study of the chinchilla law, its losses scattered by a factor exp(noise * normal)."""
    N, D = grid(sizes, lengths)
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(N.size))
    return observe(N, D, losses("chinchilla", {**TRUTH, **changed}, N, D) * scatter)
