"""What a run says of itself is what happened; what cannot be is not said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.store import read_run
from analysis.store.reader import RunMetrics
from launch import checkpoint
from tests.launch import alone
from tests.workflows.llm.account_cases import NOT_FINITE_AT, PEAK_FLOPS_PER_S
from workflows.llm.account import GROUPS, gemm_peak
from workflows.llm.config import LlmConfig
from workflows.llm.footprint import footprint

STEP_TOKENS = 4 * 16


class Ended:
    """The sentences that each case ended with, one a rank, and what its run left."""

    def __init__(self, directory: Path, sentences: dict[str, list[str]], config: LlmConfig) -> None:
        self.directory, self.sentences, self.config = directory, sentences, config

    def metrics(self, case: str) -> RunMetrics:
        return read_run(self.directory / case)

    def events(self, case: str) -> list[tuple[int, bytes]]:
        return [(int(event["step"]), event["kind"]) for event in self.metrics(case).events]


@pytest.fixture(scope="module")
def ended(tmp_path_factory, config_of, mpiexec) -> Ended:
    """Two pipeline ranks, recomputing; a row every 4 steps, a checkpoint every 5."""
    directory = tmp_path_factory.mktemp("account")
    data: dict[str, Any] = config_of(
        model={"layers": 2},
        train={"log_every": 4, "evaluations": 1, "async_checkpoint": False},
        parallel={"pp": 2, "microbatch": 1, "recompute": "full"},
    )
    done = mpiexec(
        2, "-m", "tests.workflows.llm.account_cases", str(directory), json.dumps(data), timeout_s=240
    )
    assert done.status == 0, done.stderr
    return Ended(directory, json.loads(done.stdout), LlmConfig.model_validate(data))


def test_bytes_by_group_are_those_that_the_layout_makes_by_arithmetic(ended):
    streams = ended.metrics("sound").streams
    ranks = footprint(ended.config, 2).ranks
    named = {"pp": "pp", "ends": "ends", "all": "world"}
    assert {group for group in GROUPS if len(streams[f"sent_bytes_{group}"])} == set(named.values())
    for axis, group in named.items():
        due = 4 * sum(rank.traffic[axis].sent_bytes for rank in ranks)
        rows = streams[f"sent_bytes_{group}"]
        assert rows["step"].tolist() == [4, 8, 12]
        assert rows["value"][:2].tolist() == [due, due], group  # an evaluation comes in the last row


def test_rates_are_tokens_times_flops_and_hardware_does_the_blocks_once_more(ended):
    metrics, model = ended.metrics("sound"), ended.config.model
    again = 2 * model.layers * (model.block_matmul_parameters() + 2 * model.seq_len * model.width)
    model_rate, hardware_rate = (
        metrics.streams[f"{kind}_flops_per_s"]["value"] for kind in ("model", "hardware")
    )
    np.testing.assert_allclose(hardware_rate / model_rate, 1 + again / model.flops_per_token())
    share = metrics.streams["peak_share"]["value"]
    np.testing.assert_allclose(share, model_rate / (2 * metrics.meta["gemm_peak_flops_per_s"]))
    assert metrics.meta["gemm_peak_origin"] == "measured"
    assert "once more" in metrics.meta["hardware_flops_convention"]
    tokens_per_s = metrics.streams["tokens_per_s"]["value"]
    assert (tokens_per_s * model.flops_per_token() <= model_rate).all(), (
        "a row's time holds that of its steps"
    )
    assert metrics.summary["measuring_errors"] == 0


def test_every_place_of_the_pipeline_tells_its_memory_and_the_summary_the_largest(ended):
    metrics = ended.metrics("sound")
    places = [metrics.streams[f"peak_memory_bytes_pp{place}"]["value"] for place in range(2)]
    for grows in places:
        assert (np.diff(grows) >= 0).all()
        assert 5e7 < grows[0] < 1e10, "a process with torch in it"
    assert metrics.summary["peak_memory_bytes"] == max(grows[-1] for grows in places)


def test_a_rate_above_the_fastest_matrix_product_is_refused(ended):
    assert ended.sentences["too_fast"] == ["finished"] * 2
    metrics = ended.metrics("too_fast")
    for name in ("model_flops_per_s", "hardware_flops_per_s", "peak_share"):
        assert metrics.streams[name]["step"].tolist() == [4, 8, 12]
        assert np.isnan(metrics.streams[name]["value"]).all()
        assert name not in metrics.summary
    assert metrics.summary["measuring_errors"] == 3
    [event] = [event for event in metrics.events if event["kind"] == b"measuring_error"]
    assert f"has {PEAK_FLOPS_PER_S:.4g} (site): rates are left out" in event["message"].decode()
    assert metrics.meta["gemm_peak_origin"] == "site"


def test_steps_without_a_finite_gradient_are_skipped_and_counted(ended):
    assert ended.sentences["skips"] == ["finished"] * 2
    assert ended.events("skips") == [(step, b"skipped") for step in NOT_FINITE_AT]
    metrics, last = ended.metrics("skips"), alone.load(ended.directory / "skips" / "checkpoints")
    assert metrics.streams["skipped_steps"]["value"].tolist() == [2, 2, 2]
    assert metrics.summary["skipped_steps"] == 2
    assert metrics.summary["D_tokens"] == 12 * STEP_TOKENS
    assert float(last.arrays["optimizer/count"]) == 10
    assert all(np.isfinite(array).all() for array in last.arrays.values())


def test_one_skipped_step_too_many_in_a_row_ends_the_run_after_a_restart_as_well(ended):
    for sentence in ended.sentences[
        "skips_too_few"
    ]:  # the second attempt goes on behind the first skipped step
        assert sentence.startswith("1 step 4: loss ")
        assert "gradient norm inf after 1 skipped steps; lower optimizer.lr" in sentence
    assert ended.metrics("skips_too_few").meta["restore_step"] == 3


def test_tokens_that_are_missing_are_an_error_on_every_rank(ended):
    for sentence in ended.sentences["miscounts"]:
        assert sentence.startswith("3 step 4: the ranks consumed 0 tokens since step 0, ")
        assert f"makes {4 * STEP_TOKENS}; " in sentence


def test_a_full_disk_behind_the_training_is_loud_and_leaves_the_state_before(ended):
    for sentence in ended.sentences["full_disk"]:
        assert sentence.startswith(
            f"1 {ended.directory}/full_disk/checkpoints/step-00000010: No space left on device"
        )
    assert checkpoint.steps(ended.directory / "full_disk" / "checkpoints") == [5]
    assert alone.load(ended.directory / "full_disk" / "checkpoints").skipped == []


def test_ranks_that_are_asked_to_stop_wait_for_the_save_that_has_begun_and_commit_their_step(ended):
    stopped = "None SIGUSR1: all ranks stopped after step 6, committed, checkpoints of steps [5, 6]"
    assert ended.sentences["stopped"] == [stopped] * 2
    assert alone.load(ended.directory / "stopped" / "checkpoints").skipped == []


def test_checkpoints_beside_the_training_hold_what_others_hold(ended):
    beside, not_beside = (
        alone.load(ended.directory / case / "checkpoints") for case in ("sound", "too_fast")
    )
    assert beside.step == not_beside.step == 12
    for name, array in not_beside.arrays.items():
        assert array.tobytes() == beside.arrays[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16"])
def test_a_site_s_peak_is_taken_by_threads_and_a_measured_one_is_plausible(dtype):
    import torch

    assert gemm_peak(1e9, dtype, torch.device("cpu")).flops_per_s == 1e9 * torch.get_num_threads()
    assert 1e8 < gemm_peak(0.0, dtype, torch.device("cpu")).flops_per_s < 1e14
