"""A run may change its layout at any checkpoint: not a bit of its state is lost, and its losses go on as they would."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analysis.store import read_run
from launch.rundir import RunDir
from tests.launch import alone
from tests.workflows.llm.test_program import difference

DENSE = {"layers": 2, "vocab_size": 257}
EXPERTS = {**DENSE, "experts": 4, "ffn_width": 16, "bias_rate": 0.02}
DENSE_WALK = [
    (4, {"tp": 2, "pp": 2, "microbatch": 1}),
    (2, {}),
    (4, {"pp": 2, "microbatch": 1, "zero": 1}),
    (4, {"zero": 3, "replicas": 2}),
    (4, {"tp": 2, "cp": 2}),
    (2, {"pp": 2, "schedule": "zero_bubble", "microbatch": 1}),
    (1, {}),
]
"""Layouts that follow on each other, two steps and a checkpoint each."""
EXPERT_WALK = [
    (2, {"ep": 2}),
    (1, {}),
    (4, {"ep": 2, "pp": 2, "microbatch": 1}),
    (4, {"ep": 2, "zero": 3}),
    (2, {"ep": 2, "zero": 1}),
]
GPUS = {"backend": "nccl"}
GPU_WALK = [
    (2, {"tp": 2, **GPUS}),
    (1, {}),
    (4, {"zero": 3, **GPUS}),
    (4, {"pp": 4, "microbatch": 1, **GPUS}),
    (2, {"cp": 2, **GPUS}),
]
"""To GPUs, from them to a CPU, and back."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((DENSE, DENSE_WALK), id="dense"),
        pytest.param((EXPERTS, EXPERT_WALK), id="experts", marks=pytest.mark.full),
        pytest.param(({**DENSE, "layers": 4}, GPU_WALK), id="gpus", marks=pytest.mark.gpu),
    ],
)
def walked(request, tmp_path_factory, config_of, mpiexec):
    """Return (undisturbed run, walked run, [(arrays that a layout found, the same saved by it again)])."""
    place = tmp_path_factory.mktemp("reshard")
    model, walk = request.param
    on_gpus, starts = any(GPUS.items() <= parallel.items() for _, parallel in walk), ["-m"]
    if on_gpus:  # which round otherwise than CPUs
        request.getfixturevalue("gpus")
        starts = ["-m", "tests.sharing_gpus"]
    dtype = "fp64" if on_gpus else "fp32"
    shape = {"model": model, "train": {"checkpoint_every": 2, "dtype": dtype, "steps": 2 * len(walk)}}

    def train(name: str, ranks: int, parallel: dict, **case) -> None:
        held = {
            "run": str(place / name),
            "config": config_of(**shape, parallel=parallel),
            "cache_dir": str(place),
        }
        (place / "cases.json").write_text(json.dumps([{**held, "stop_before": None, **case}]))
        ended = mpiexec(ranks, *starts, "tests.workflows.llm.many_runs", str(place / "cases.json"))
        assert ended.status == 0, ended.stderr

    train("undisturbed", 1, {})
    states = []
    for i, (ranks, parallel) in enumerate(walk):
        before = alone.load(RunDir(place / "walked").checkpoints)
        train("walked", ranks, parallel, stop_before=2 * i + 3, save_first=before is not None)
        if before:
            states.append((before, alone.load(place / f"taken-up-{before.step}")))
    return place / "undisturbed", place / "walked", states


@pytest.mark.timeout(300)
def test_another_layout_takes_up_every_bit_of_the_state(walked):
    states = walked[2]
    assert [before.step for before, _ in states] == [2 * i for i in range(1, len(states) + 1)]
    for before, after in states:
        assert (after.step, after.meta) == (before.step, before.meta)
        assert after.arrays.keys() == before.arrays.keys()
        for name, array in before.arrays.items():
            assert after.arrays[name].tobytes() == array.tobytes(), name
        biases = [array for name, array in before.arrays.items() if name.endswith("ffn.bias")]
        assert all(np.abs(bias).max() > 0 for bias in biases)
        assert len(biases) == 2 * any("experts" in name for name in before.arrays)


@pytest.mark.timeout(300)
def test_losses_go_on_as_if_the_layout_had_never_changed(walked):
    undisturbed, run, _ = (read_run(path) if path != walked[2] else None for path in walked)
    for name in ("train_loss", "val_loss", "grad_norm"):
        one, other = run.streams[name], undisturbed.streams[name]
        np.testing.assert_array_equal(one["step"], other["step"])
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
        assert difference(one["value"], other["value"]) <= (1e-4 if name == "grad_norm" else 1e-6), name
    if "expert_imbalance" in run.streams:
        steps = run.streams["train_loss"]["step"]
        np.testing.assert_array_equal(run.streams["expert_imbalance"]["step"], steps)
        assert (run.streams["expert_imbalance"]["value"] > 1).all()
        assert (run.streams["expert_imbalance"]["value"] <= 4 / 2).all(), (
            "no expert gets more than every token"
        )
        assert (run.streams["dropped_share"]["value"] == 0).all()
