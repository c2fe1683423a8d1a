"""What each rank of a language-model run does. Started as `python -m mpi4py -m workflows.llm.program RUN_DIR`."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from launch import bootstrap, checkpoint, heap  # isort: skip  (MPI comes before torch)
import numpy as np
import torch

from analysis.store.schema import StreamSpec
from launch.agree import everywhere, on_root
from launch.metrics import Metrics
from launch.signals import StopSignals
from launch.watchdog import Watchdog
from mpi_ops import counters
from mpi_ops.errors import BackendError
from mpi_ops.process_group import destroy_process_group, device_of, init_process_group
from mpi_ops.work import waiting
from slurm.strict_yaml import load
from workflows.config import parse
from workflows.errors import ConfigError, RefusedError
from workflows.llm import account, optimizer
from workflows.llm.account import RATES, Account, Peak, gemm_peak, memory_streams
from workflows.llm.batches import Batches
from workflows.llm.config import HARDWARE_CONVENTION, LlmConfig, size
from workflows.llm.data import TokenFile, prepare_tokens
from workflows.llm.expert_parallel import expert_streams
from workflows.llm.initial import initial_sha256, open_initial
from workflows.llm.parallelize import ParallelModel
from workflows.llm.ranks import check_ranks, layout_of

CPU = torch.device("cpu")
STREAMS = (
    StreamSpec("train_loss", "nat/token", "mean cross-entropy of the step's batch, before its update"),
    StreamSpec("val_loss", "nat/token", "mean cross-entropy of the fixed validation sequences"),
    StreamSpec("grad_norm", "1", "global norm of the gradient before clipping"),
    StreamSpec("lr", "1", "learning rate of the step"),
    *RATES,
)
SUMMARY = ("N_total", "N_nonembedding", "D_tokens", "C_flops", "L_val", "wall_s", *account.SUMMARY)
Made = TypeVar("Made")


class DivergedError(Exception):
    """Training left the numbers: another attempt would do the same."""

    exit_code = 1


@dataclass(slots=True)
class Training:
    """Everything that a step changes, and what it needs."""

    job: bootstrap.Job
    config: LlmConfig
    tokens_file: TokenFile
    batches: Batches
    model: ParallelModel
    optimizer: optimizer.AdamW
    metrics: Metrics
    account: Account
    saver: checkpoint.Saver
    stop: StopSignals
    watchdog: Watchdog
    step: int = 0
    """Steps done."""
    wall_s: float = 0.0
    """Time spent in steps, over all attempts that count."""
    val_loss: float = float("nan")
    skipped: int = 0
    """Steps without an update, over all attempts that count."""
    skipped_in_a_row: int = 0

    @property
    def tokens(self) -> int:
        """Tokens consumed by all ranks, which `account` holds against what they have counted."""
        return self.step * self.config.tokens_per_step


def main() -> None:
    """Run as one rank of the job that the command line names."""
    heap.keep()
    with bootstrap.start() as job:
        held = load(job.run.config)
        config = parse(LlmConfig, held.data["config"], lambda at: f"{held.source}: {'.'.join(map(str, at))}")
        try:
            device = device_of(config.parallel.backend, job.device)
        except BackendError as error:
            raise ConfigError(f"parallel.backend: {error}") from None
        init_process_group(job.comm, config.parallel.backend, config.parallel.message_timeout_s, device)
        stated = held.data.get("gemm_peak_flops_per_s", 0.0)
        train(job, config, Path(held.data["cache_dir"]), stated, device)
        destroy_process_group(job.comm)


def train(
    job: bootstrap.Job,
    config: LlmConfig,
    cache_dir: Path,
    gemm_peak_flops_per_s: float = 0.0,
    device: torch.device = CPU,
) -> None:
    """Train from the last checkpoint, or from the start, to the end of the run.

    `gemm_peak_flops_per_s` is the site's fastest matrix product on a core or GPU; 0 = rank 0 measures its own.

    Raises:
        RequeueRequest: a signal came to some rank, and all have committed the same step.
        RefusedError: the checkpoint was made from another text.
        ConfigError: the weights to start from are not there, or another model's.
        DivergedError: the loss, the gradient or the validation loss is no longer a number.
        MiscountError: the ranks have not consumed the tokens that the configuration says.
        NotSavedError: a checkpoint could not be written; with `async_checkpoint` some steps later.
    """
    try:
        check_ranks(config, job.world_size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.train.compile:
        from workflows.llm.compiler import prepare_compiler

        folder = job.run.path / "compiled"
        on_root(job.comm, lambda: shutil.rmtree(folder, ignore_errors=True))  # what a killed attempt left
        prepare_compiler(folder / str(job.rank))
    tokens = _on_rank_0(job, lambda: prepare_tokens(config.data, config.model.vocab_size, cache_dir))
    layout = layout_of(config, job.world_size)
    torch.manual_seed(config.train.seed)  # nothing draws from it yet; checkpoints keep its state all the same
    model = ParallelModel(config, layout, device)
    adamw = optimizer.AdamW(model.parameters(), config.optimizer)
    batches = Batches(config, *tokens.read(), model.mesh.place("dp"), layout.dp)
    saved = checkpoint.load(job.comm, job.run.checkpoints, wanted(model, adamw))
    taken_over = None if saved else _begin(job, model)
    first_step = saved.step if saved else 0
    peak = _on_rank_0(job, lambda: gemm_peak(gemm_peak_flops_per_s, config.train.dtype, device))
    meta = _meta(job, config, tokens, first_step, peak)
    attempt_file = job.run.attempt(job.attempt, "h5")
    streams = [*STREAMS, *memory_streams(layout.pp), *expert_streams(config.model)]
    with (
        StopSignals(job.comm) as stop,
        Watchdog(job, config.parallel.timeout_s, waiting) as watchdog,
        Metrics(job.comm, attempt_file, meta=meta, streams=streams, summary=SUMMARY) as metrics,
    ):
        counted = Account(config, model, metrics, peak, first_step)
        saver = checkpoint.Saver(job.comm.Dup(), job.run.checkpoints, beside=config.train.async_checkpoint)
        run = Training(job, config, tokens, batches, model, adamw, metrics, counted, saver, stop, watchdog)
        if saved:
            restore(run, saved)
        if taken_over:
            metrics.event("initial", f"weights with SHA-256 {taken_over}")
        if batches.passes > 1:
            metrics.event("repeats", f"the text is read {batches.passes:.2f} times")
        to_the_end(run)
        saver.close()
        n_total, n_nonembedding = config.model.parameters()
        metrics.finish(
            run.step,
            N_total=n_total,
            N_nonembedding=n_nonembedding,
            D_tokens=run.tokens,
            C_flops=size(config).c_flops,
            L_val=run.val_loss,
            wall_s=run.wall_s,
            skipped_steps=run.skipped,
            **counted.summary(run.step),
        )


def to_the_end(run: Training) -> None:
    """Do the steps that are left. Raises RequeueRequest once a signal came to any rank, the step committed."""
    while run.step < run.config.steps:
        advance(run)
        run.watchdog.beat()
        if run.step < run.config.steps and (asked := run.stop.boundary()):
            commit(run)
            raise bootstrap.RequeueRequest(
                f"{asked.name}: all ranks stopped after step {run.step}, committed"
            )


def advance(run: Training) -> None:
    """Do one step, and whatever is due after it: a row of metrics, an evaluation, a checkpoint."""
    run.saver.check()
    began_s, waited_s = time.monotonic(), counters.seconds()
    settings = run.config.train
    train_loss, grad_norm, lr = step(run)
    run.watchdog.beat()
    run.account.trained(time.monotonic() - began_s)
    run.step += 1
    run.job.step = run.step
    last = run.step == run.config.steps
    if last or run.step in evaluation_steps(run.config):
        run.val_loss = evaluate(run)
        if not math.isfinite(run.val_loss):
            raise _diverged(run.config, run.step, f"validation loss {run.val_loss}")
        run.metrics.record(run.step, run.tokens, val_loss=run.val_loss)
    wall_s = time.monotonic() - began_s
    run.wall_s += wall_s
    run.metrics.step(run.step, wall_s, counters.seconds() - waited_s)
    if last or run.step % settings.log_every == 0:
        row = {"train_loss": train_loss, "grad_norm": grad_norm, "lr": lr, "skipped_steps": run.skipped}
        row |= run.model.experts.measures()
        run.metrics.record(run.step, run.tokens, **row, **run.account.row(run.step))
    if last or run.step % settings.checkpoint_every == 0:
        save(run)


def commit(run: Training) -> None:
    """Return once the state of this very step is committed, whatever was under way."""
    if run.step % run.config.train.checkpoint_every:
        save(run)
    run.saver.wait()  # MPI must not end under a save, nor the next attempt begin before it


def step(run: Training) -> tuple[float, float, float]:
    """Do one optimizer step over the global batch; return its mean loss, gradient norm and learning rate.

    Where the norm is no number, on every rank then, weights and moments stay as they are.

    Cost: that of `ParallelModel.backward`.
    """
    config = run.config
    train_loss, grad_norm = run.model.backward(*map(torch.from_numpy, run.batches.batch(run.step)))
    lr = optimizer.learning_rate(run.step, config.steps, config.peak_lr, config.optimizer)
    if not math.isfinite(grad_norm):
        _skip(run, f"loss {train_loss:.4g}, gradient norm {grad_norm}")
        return train_loss, grad_norm, lr
    run.skipped_in_a_row = 0
    gradients = run.model.gradients()
    optimizer.clip(gradients.values(), grad_norm, config.optimizer.grad_clip)
    run.optimizer.step(lr, gradients)
    run.model.experts.balance()
    return train_loss, grad_norm, lr


def _skip(run: Training, found: str) -> None:
    """Count a step without an update. Raises DivergedError when there were too many in a row."""
    if run.skipped_in_a_row >= run.config.train.skip_nonfinite:
        after = f" after {run.skipped_in_a_row} skipped steps" if run.skipped_in_a_row else ""
        raise _diverged(run.config, run.step + 1, f"{found}{after}")
    run.skipped += 1
    run.skipped_in_a_row += 1
    run.metrics.event("skipped", f"no update: {found}", run.step + 1)


def evaluate(run: Training) -> float:
    """Return the mean loss over the fixed validation sequences, the same on every rank.

    Every rank takes part in as many rounds as the one with the most sequences: others may need its weights.

    Cost: a forward pass a round, and one all-reduce of two numbers.
    """
    here, length = np.zeros(2), run.config.model.seq_len
    nothing = (np.zeros((1, length), np.int64),) * 2
    batches = run.batches.validation_batches()
    for _ in range(run.batches.validation_rounds):
        batch = next(batches, nothing)
        total = run.model.loss_sum(*map(torch.from_numpy, batch))
        if batch is not nothing:
            here += (total, batch[0].size / run.model.pipeline_ranks)
    everywhere = np.empty_like(here)
    run.job.comm.Allreduce(here, everywhere)
    return float(everywhere[0] / everywhere[1])


def evaluation_steps(config: LlmConfig) -> set[int]:
    """Return the steps after which the validation loss is taken: equal distances, the last at the end."""
    n = min(config.train.evaluations, config.steps)
    return {round(config.steps * (i + 1) / n) for i in range(n)}


def save(run: Training) -> None:
    """Commit a checkpoint, or begin to: weights, moments, random state; the data's cursor is the step itself."""
    began_s = time.monotonic()
    pieces = []
    for key, tensor in _parts(run.model, run.optimizer).items():
        box = run.model.boxes[key.partition("/")[2]]
        if box.first_copy:
            pieces.append(checkpoint.Piece(key, tensor.cpu().numpy(), box.shape, box.offset))
    if run.job.rank == 0:
        pieces += [
            checkpoint.whole(key, tensor.cpu().numpy()) for key, tensor in _common(run.optimizer).items()
        ]
    meta = {
        "text_sha256": run.tokens_file.text_sha256,
        "tokenizer_sha256": run.tokens_file.tokenizer_sha256,
        "val_loss": _json(run.val_loss),
        "wall_s": run.wall_s,
        "skipped": [run.skipped, run.skipped_in_a_row],
    }
    run.metrics.flush()  # a resumed run keeps the rows up to its checkpoint, so they must be there
    run.saver.start(run.step, pieces, meta)
    run.metrics.record(run.step, run.tokens, checkpoint_s=time.monotonic() - began_s)


def wanted(model: ParallelModel, adamw: optimizer.AdamW) -> dict[str, checkpoint.Wanted]:
    """Return what this rank needs of a checkpoint."""
    parts = {
        key: checkpoint.Wanted(box.shape, box.offset, tuple(tensor.shape), _numpys(tensor.dtype))
        for key, tensor in _parts(model, adamw).items()
        for box in [model.boxes[key.partition("/")[2]]]
    }
    common = {
        key: checkpoint.Wanted(
            tuple(tensor.shape), (0,) * tensor.ndim, tuple(tensor.shape), _numpys(tensor.dtype)
        )
        for key, tensor in _common(adamw).items()
    }
    return {**parts, **common}


def _parts(model: ParallelModel, adamw: optimizer.AdamW) -> dict[str, torch.Tensor]:
    """Return the state that the model's boxes place, the memory itself, by `KIND/NAME`."""
    more = {f"state/{name}": tensor for name, tensor in model.state().items()}
    return {**optimizer.state(model.parameters(), adamw), **more}


def _common(adamw: optimizer.AdamW) -> dict[str, torch.Tensor]:
    """Return the state that is the same on all ranks."""
    return {"optimizer/count": adamw.count, "rng/torch": torch.get_rng_state()}


def _numpys(dtype: torch.dtype) -> np.dtype[Any]:
    """Return numpy's name of a dtype."""
    return torch.empty(0, dtype=dtype).numpy().dtype


def restore(run: Training, saved: checkpoint.Checkpoint) -> None:
    """Take the state back from a checkpoint, bit by bit. Raises RefusedError for another text or tokenizer."""
    if saved.meta["text_sha256"] != run.tokens_file.text_sha256:
        raise RefusedError(
            f"{run.job.run.path}: step {saved.step} was trained on a text with SHA-256 "
            f"{saved.meta['text_sha256'][:12]}, data.source now holds {run.tokens_file.text_sha256[:12]}; "
            "bring the text back, or remove this run's directory to start it anew"
        )
    if saved.meta.get("tokenizer_sha256", "") != run.tokens_file.tokenizer_sha256:
        raise RefusedError(
            f"{run.job.run.path}: step {saved.step} was trained with a tokenizer with SHA-256 "
            f"'{saved.meta.get('tokenizer_sha256', '')[:12]}', data.tokenizer={run.config.data.tokenizer} now has "
            f"'{run.tokens_file.tokenizer_sha256[:12]}'; bring it back, or remove this run's directory to start it anew"
        )
    for key, tensor in _parts(run.model, run.optimizer).items():
        tensor.copy_(torch.from_numpy(saved.arrays[key]))
    run.optimizer.count.fill_(float(saved.arrays["optimizer/count"]))
    torch.set_rng_state(torch.tensor(saved.arrays["rng/torch"]))
    run.step, run.wall_s = saved.step, saved.meta["wall_s"]
    run.val_loss = float("nan") if saved.meta["val_loss"] is None else saved.meta["val_loss"]
    run.skipped, run.skipped_in_a_row = saved.meta.get("skipped", [0, 0])  # older ones skipped none
    run.job.step = run.step
    for sentence in saved.skipped:
        run.metrics.event("damaged", sentence, run.step)
        if run.job.rank == 0:
            print(f"rank 0: {sentence}; going on from step {saved.step}", file=sys.stderr)
    run.metrics.event("restored", f"from step {saved.step}", run.step)


def _begin(job: bootstrap.Job, model: ParallelModel) -> str | None:
    """Set the first weights; return the SHA-256 of those that `model.init_from` names, None where they are drawn."""
    config = model.config.model
    if config.init_from is None:
        model.draw()
        return None
    weights = everywhere(job.comm, lambda: open_initial(config))
    everywhere(job.comm, lambda: model.take_over(weights))
    return on_root(job.comm, lambda: initial_sha256(config))


def _meta(
    job: bootstrap.Job, config: LlmConfig, tokens: TokenFile, restore_step: int, peak: Peak
) -> dict[str, str | int | float]:
    return {
        "workflow": "llm",
        "run_id": job.run.path.name,
        "attempt": job.attempt,
        "restore_step": restore_step,
        "world_size": job.world_size,
        "layout": json.dumps(layout_of(config, job.world_size).degrees),
        "config": json.dumps(config.model_dump(mode="json")),
        "flops_convention": size(config).flops_convention,
        "hardware_flops_convention": HARDWARE_CONVENTION,
        "gemm_peak_flops_per_s": peak.flops_per_s,
        "gemm_peak_origin": peak.origin,
        "text_sha256": tokens.text_sha256,
        "tokenizer": tokens.tokenizer,
        "tokenizer_sha256": tokens.tokenizer_sha256,
        "bytes_per_token": tokens.bytes_per_token,
        "torch": str(torch.__version__),
    }


def _diverged(config: LlmConfig, step: int, found: str) -> DivergedError:
    return DivergedError(f"step {step}: {found}; lower optimizer.lr (the peak here is {config.peak_lr:.3g})")


def _on_rank_0(job: bootstrap.Job, make: Callable[[], Made]) -> Made:
    """Return what rank 0 made, on every rank. Cost: one broadcast."""
    made: Made = job.comm.bcast(make() if job.rank == 0 else None)
    return made


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value


if __name__ == "__main__":
    main()
