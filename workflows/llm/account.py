"""What a run says of itself: its rates, its traffic, its memory, and the tokens that it has really consumed.

A rate is only as good as its count of tokens, so tokens are counted where the loss takes them, on every rank, and a
run whose sum is not what the configuration says ends with an error. A rank that seems to multiply faster than the
machine's fastest matrix product was measured wrong: nothing is recorded then.
"""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from analysis.store.schema import StreamSpec
from launch.metrics import Metrics
from mpi_ops import counters
from workflows.llm.config import LlmConfig
from workflows.llm.parallelize import ParallelModel

GROUPS = {
    "tp": "along tp",
    "cp": "along cp",
    "pp": "along pp",
    "ep": "along ep, to the experts and back",
    "experts": "between ranks with the same experts, for gradients",
    "ends": "between the pipeline's ends, for tied weights",
    "data": "along dp and cp together, for gradients and shards",
    "replicas": "between ranks with the same shards, for gradients",
    "world": "over all ranks",
}
"""Groups of ranks by the description that `mpi_ops.counters` has of them; any other counts as the world."""
RATES = (
    StreamSpec(
        "tokens_per_s", "token/s", "of all ranks together, since the row before, all that passes counted"
    ),
    StreamSpec("model_flops_per_s", "FLOP/s", "of all ranks together, in steps since the row before alone"),
    StreamSpec("hardware_flops_per_s", "FLOP/s", "the same with what is computed again"),
    StreamSpec("peak_share", "1", "model_flops_per_s over that of all ranks' fastest matrix product"),
    StreamSpec("skipped_steps", "1", "steps without an update so far, their gradient being no number"),
    StreamSpec("checkpoint_s", "s", "how long training stood still for a checkpoint"),
    *(
        StreamSpec(f"sent_bytes_{name}", "B", f"sent by all ranks {where} since the row before")
        for name, where in GROUPS.items()
    ),
)
SUMMARY = (
    *("model_flops_per_s", "hardware_flops_per_s", "peak_share", "tokens_per_s"),
    *("skipped_steps", "measuring_errors", "peak_memory_bytes"),
)
GEMM_WIDTH, GPU_GEMM_WIDTH = 384, 8192
GEMM_S = 0.02
"""Shortest time for which the matrix product is repeated; the best one counts."""


class MiscountError(Exception):
    """The ranks consumed another number of tokens than the configuration says: every figure by tokens is wrong."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Peak:
    """The fastest matrix product of a rank in FLOP/s, and who says so."""

    flops_per_s: float
    origin: str


def gemm_peak(stated: float, dtype: str, device: torch.device) -> Peak:
    """Return the peak of a rank: what the site states for a GPU, or a core times threads; else measured here."""
    if stated:
        return Peak(stated if device.type == "cuda" else stated * torch.get_num_threads(), "site")
    kinds = {"fp32": [torch.float32], "fp64": [torch.float64], "bf16": [torch.float32, torch.bfloat16]}
    return Peak(max(_measured_gemm(each, device) for each in kinds[dtype]), "measured")


def _measured_gemm(dtype: torch.dtype, device: torch.device) -> float:
    width = GPU_GEMM_WIDTH if device.type == "cuda" else GEMM_WIDTH
    # Of any numbers, not of equal ones: they cost a GPU less power, so that its clock stays higher than in training.
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn((width, width), dtype=dtype, device=device, generator=generator)
    best_s, began_s, done = math.inf, time.perf_counter(), 0
    while done < 3 or time.perf_counter() - began_s < GEMM_S:
        started_s = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_s, done = min(best_s, time.perf_counter() - started_s), done + 1
    return 2 * width**3 / best_s


def memory_streams(stages: int) -> list[StreamSpec]:
    """Return the streams of the memory of each place along the pipeline."""
    what = "largest so far of any rank at this place of the pipeline: resident memory, or torch's on a GPU"
    return [StreamSpec(_memory(place), "B", what) for place in range(stages)]


def _memory(place: int) -> str:
    return f"peak_memory_bytes_pp{place}"


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held at once: torch's on a GPU, else all that is resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


@dataclass(slots=True)
class Account:
    """Adds up what the steps of one attempt do; every rank has one and asks it for the same rows."""

    config: LlmConfig
    model: ParallelModel
    metrics: Metrics
    peak: Peak
    first_step: int
    """The step that this attempt went on from."""
    measuring_errors: int = 0
    _row_step: int = field(init=False)
    _train_s: float = 0.0
    """In steps, since the attempt began; and until the last row:"""
    _row_train_s: float = 0.0
    _began_s: float = field(default_factory=time.monotonic)
    _row_s: float = field(default_factory=time.monotonic)
    _sent: dict[str, int] = field(default_factory=dict)
    _memory_bytes: float = math.nan

    def __post_init__(self) -> None:
        self._row_step = self.first_step
        self._sent = _sent_bytes()

    def trained(self, seconds: float) -> None:
        """Note how long the forward and backward passes and the update of a step took here."""
        self._train_s += seconds

    def row(self, step: int) -> dict[str, float]:
        """Return one row's value of each stream that has one; the same call on every rank.

        Raises:
            MiscountError: on every rank, when tokens are missing or were counted twice.

        Cost: two all-reduces of less than 20 numbers.
        """
        sent = self._check_tokens(step)
        steps, train_s = step - self._row_step, self._train_s - self._row_train_s
        now_s = time.monotonic()
        found = {
            "tokens_per_s": steps * self.config.tokens_per_step / (now_s - self._row_s),
            **self._rates(step, steps, train_s),
            **{f"sent_bytes_{name}": n_bytes for name, n_bytes in sent.items() if n_bytes},
            **self._memory(),
        }
        self._row_step, self._row_train_s, self._row_s = step, self._train_s, now_s
        return found

    def summary(self, step: int) -> dict[str, float]:
        """Return the figures of the whole attempt; those that follow from a wrong rate are no numbers."""
        steps, total_s = step - self.first_step, time.monotonic() - self._began_s
        rates = self._flops(steps, math.nan if self.measuring_errors else self._train_s)
        return {
            **rates,
            "tokens_per_s": steps * self.config.tokens_per_step / total_s,
            "measuring_errors": self.measuring_errors,
            "peak_memory_bytes": self._memory_bytes,
        }

    def _check_tokens(self, step: int) -> dict[str, float]:
        """Compare the tokens that all ranks have consumed with those of the steps; return bytes sent by group."""
        sent = _sent_bytes()
        mine = [self.model.consumed_tokens, *(sent[name] - self._sent[name] for name in GROUPS)]
        consumed, *everyones = self.metrics.total(np.array(mine, np.int64)).tolist()
        due = (step - self.first_step) * self.config.tokens_per_step
        if consumed != due:
            raise MiscountError(
                f"step {step}: the ranks consumed {consumed:,} tokens since step {self.first_step}, "
                f"train.global_batch x model.seq_len x steps makes {due:,}; no rate of this run can be right"
            )
        self._sent = sent
        return dict(zip(GROUPS, everyones, strict=True))

    def _flops(self, steps: int, seconds: float) -> dict[str, float]:
        per_s = steps * self.config.tokens_per_step / seconds if seconds else math.nan
        model = per_s * self.config.model.flops_per_token()
        return {
            "model_flops_per_s": model,
            "hardware_flops_per_s": per_s * self.config.hardware_flops_per_token(),
            "peak_share": model / (self.peak.flops_per_s * self.model.layout.world_size),
        }

    def _rates(self, step: int, steps: int, seconds: float) -> dict[str, float]:
        """Return the FLOP rates of so many steps, no numbers when the machine cannot be that fast."""
        rates = self._flops(steps, seconds)
        if not rates["peak_share"] > 1:
            return rates
        if not self.measuring_errors:
            self.metrics.event(
                "measuring_error",
                f"{rates['model_flops_per_s'] / self.model.layout.world_size:.4g} FLOP/s a rank, but its fastest "
                f"matrix product has {self.peak.flops_per_s:.4g} ({self.peak.origin}): rates are left out",
                step,
            )
        self.measuring_errors += 1
        return dict.fromkeys(rates, math.nan)

    def _memory(self) -> dict[str, float]:
        held = np.zeros(self.model.layout.pp)
        held[self.model.mesh.place("pp")] = peak_memory_bytes()
        largest = self.metrics.largest(held)
        self._memory_bytes = float(largest.max())
        return {_memory(place): n_bytes for place, n_bytes in enumerate(largest.tolist())}


def _sent_bytes() -> dict[str, int]:
    """Return what this rank has sent by group."""
    sent = dict.fromkeys(GROUPS, 0)
    for each in counters.snapshot():
        sent[each.group if each.group in GROUPS else "world"] += each.sent_bytes
    return sent
