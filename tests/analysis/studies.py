"""Synthetic studies: a law's losses on a grid of sizes and tokens, with noise or without."""

from __future__ import annotations

import numpy as np

from analysis import Observations, laws

TRUTH = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}


def losses(law: str, truth: dict[str, float], N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return laws.get(law).predict({name: np.asarray(value) for name, value in truth.items()}, N, D)


def observe(N: np.ndarray, D: np.ndarray, L: np.ndarray) -> Observations:
    return Observations(N, D, L, tuple(f"run {i}" for i in range(len(L))), "simulated")


def grid(sizes: int = 5, lengths: int = 4) -> tuple[np.ndarray, np.ndarray]:
    N, D = np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(1e9, 1e11, lengths))
    return N.ravel(), D.ravel()


def study(seed: int, sizes: int = 5, lengths: int = 4, noise: float = 0.01, **changed: float) -> Observations:
    """Return a study of the chinchilla law, its losses scattered by a factor exp(noise * normal)."""
    N, D = grid(sizes, lengths)
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(N.size))
    return observe(N, D, losses("chinchilla", {**TRUTH, **changed}, N, D) * scatter)
