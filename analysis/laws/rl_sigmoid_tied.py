"""The sigmoid of several recipes g with one asymptote: what differs is how fast they get there (ScaleRL)."""

from __future__ import annotations

from analysis.laws.rl_sigmoid import RlSigmoid


class RlSigmoidTied(RlSigmoid):
    """Every recipe g has its own B and C_mid."""

    name = "rl_sigmoid_tied"
    description = "the sigmoid of several recipes g with one asymptote A, and B and C_mid of each"
    inputs = {"C": (100, 16000), "g": (1, 2)}
    example = {"A": 0.61, "R0": 0.22, "B[1]": 1.9, "B[2]": 1.5, "C_mid[1]": 2500.0, "C_mid[2]": 3000.0}
    grouped_by, per_group = "g", ("B", "C_mid")
    absolute = ("g",)


LAW = RlSigmoidTied()
