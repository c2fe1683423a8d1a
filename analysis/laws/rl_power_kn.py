"""ln L(N, X) = E(N) - k(N) ln X, k(N) = K_max N / (N + N0): efficiency saturates with size (arXiv 2509.25300)."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.law import Law, Values, place


class RlPowerKn(Law):
    """Test loss 1 - pass@1 by compute or data X; every size has its own intercept E(N), which no k(N) predicts."""

    name = "rl_power_kn"
    description = "ln L = E(N) - K_max N / (N + N0) ln X: reinforcement learning by model size"
    inputs = {"X": (1e2, 1e5), "N": (5e8, 7.2e10)}
    factors, signed = ("K_max", "E"), ("E",)
    shapes = {"N0": place("N", 24)}
    example = {
        "K_max": 0.32,
        "N0": 6e9,
        **{f"E[{N:g}]": 0.2 for N in (5e8, 1.5e9, 3e9, 7e9, 1.4e10, 3.2e10, 7.2e10)},
    }
    grouped_by, per_group = "N", ("E",)
    absolute = ("X",)
    exponential = True
    delta, min_distinct = 1.0, 2

    def terms(self, s: Values, x: Values) -> tuple[Any, ...]:
        """Return -N / (N + N0) ln X and one."""
        return -np.log(x["X"]) / (1 + np.exp(s["N0"]) / x["N"]), np.ones_like(x["X"])


LAW = RlPowerKn()
