"""What each rank of a language-model run does. Started as `python -m mpi4py -m workflows.llm.program RUN_DIR`."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from launch import bootstrap, checkpoint  # isort: skip  (MPI comes before torch)
import numpy as np
import torch

from analysis.store.schema import StreamSpec
from launch.metrics import Metrics
from mpi_ops.process_group import destroy_process_group, init_process_group
from slurm.strict_yaml import load
from workflows.config import parse
from workflows.errors import ConfigError, RefusedError
from workflows.llm import optimizer
from workflows.llm.config import LlmConfig, check_ranks, layout_of, size
from workflows.llm.data import Batches, TokenFile, prepare_tokens
from workflows.llm.parallelize import ParallelModel

STREAMS = (
    StreamSpec("train_loss", "nat/token", "mean cross-entropy of the step's batch, before its update"),
    StreamSpec("val_loss", "nat/token", "mean cross-entropy of the fixed validation sequences"),
    StreamSpec("grad_norm", "1", "global norm of the gradient before clipping"),
    StreamSpec("lr", "1", "learning rate of the step"),
    StreamSpec("tokens_per_s", "token/s", "of all ranks together, since the row before"),
)
SUMMARY = ("N_total", "N_nonembedding", "D_tokens", "C_flops", "L_val", "wall_s")
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
    step: int = 0
    """Steps done."""
    wall_s: float = 0.0
    """Time spent in steps, over all attempts that count."""
    val_loss: float = float("nan")
    logged_s: float = field(default_factory=time.monotonic)
    logged_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens consumed by all ranks."""
        return self.step * self.config.tokens_per_step


def main() -> None:
    """Run as one rank of the job that the command line names."""
    with bootstrap.start() as job:
        held = load(job.run.config)
        config = parse(LlmConfig, held.data["config"], lambda at: f"{held.source}: {'.'.join(map(str, at))}")
        if config.parallel.backend == "nccl":
            raise ConfigError("parallel.backend=nccl: tensors are on CPUs so far; take mpi4py or gloo")
        init_process_group(job.comm, config.parallel.backend, config.parallel.timeout_s)
        train(job, config, Path(held.data["cache_dir"]))
        destroy_process_group(job.comm)


def train(job: bootstrap.Job, config: LlmConfig, cache_dir: Path) -> None:
    """Train from the last checkpoint, or from the start, to the end of the run.

    Raises:
        RefusedError: the checkpoint was made from another text.
        DivergedError: the loss, the gradient or the validation loss is no longer a number.
    """
    try:
        check_ranks(config, job.world_size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tokens = _on_rank_0(job, lambda: prepare_tokens(config.data, cache_dir))
    layout = layout_of(config, job.world_size)
    torch.manual_seed(config.train.seed)  # nothing draws from it yet; checkpoints keep its state all the same
    model = ParallelModel(config, layout)
    adamw = optimizer.AdamW(model.parameters(), config.optimizer)
    batches = Batches(config, *tokens.read(), model.mesh.place("dp"), layout.dp)
    saved = checkpoint.load(job.comm, job.run.checkpoints, wanted(model, adamw))
    meta = _meta(job, config, tokens, saved.step if saved else 0)
    attempt_file = job.run.attempt(job.attempt, "h5")
    with Metrics(job.comm, attempt_file, meta=meta, streams=STREAMS, summary=SUMMARY) as metrics:
        run = Training(job, config, tokens, batches, model, adamw, metrics)
        if saved:
            restore(run, saved)
        if batches.passes > 1:
            metrics.event("repeats", f"the text is read {batches.passes:.2f} times")
        while run.step < config.steps:
            advance(run)
        n_total, n_nonembedding = config.model.parameters()
        metrics.finish(
            run.step,
            N_total=n_total,
            N_nonembedding=n_nonembedding,
            D_tokens=run.tokens,
            C_flops=size(config).c_flops,
            L_val=run.val_loss,
            wall_s=run.wall_s,
        )


def advance(run: Training) -> None:
    """Do one step, and whatever is due after it: a row of metrics, an evaluation, a checkpoint."""
    began_s = time.monotonic()
    settings = run.config.train
    train_loss, grad_norm, lr = step(run)
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
    run.metrics.step(run.step, wall_s)
    if last or run.step % settings.log_every == 0:
        now_s = time.monotonic()
        speed = (run.tokens - run.logged_tokens) / (now_s - run.logged_s)
        run.logged_tokens, run.logged_s = run.tokens, now_s
        run.metrics.record(
            run.step, run.tokens, train_loss=train_loss, grad_norm=grad_norm, lr=lr, tokens_per_s=speed
        )
    if last or run.step % settings.checkpoint_every == 0:
        save(run)


def step(run: Training) -> tuple[float, float, float]:
    """Do one optimizer step over the global batch; return its mean loss, gradient norm and learning rate.

    Cost: that of `ParallelModel.backward`.
    """
    config = run.config
    train_loss, grad_norm = run.model.backward(*map(torch.from_numpy, run.batches.batch(run.step)))
    if not math.isfinite(grad_norm):
        raise _diverged(config, run.step + 1, f"loss {train_loss:.4g}, gradient norm {grad_norm}")
    gradients = run.model.gradients()
    optimizer.clip(gradients.values(), grad_norm, config.optimizer.grad_clip)
    lr = optimizer.learning_rate(run.step, config.steps, config.peak_lr, config.optimizer)
    run.optimizer.step(lr, gradients)
    run.model.experts.balance()
    return train_loss, grad_norm, lr


def evaluate(run: Training) -> float:
    """Return the mean loss over the fixed validation sequences, the same on every rank.

    Every rank takes part in as many rounds as the one with the most sequences: others may need its weights.

    Cost: a forward pass a round, and one all-reduce of two numbers.
    """
    here, length = np.zeros(2), run.config.model.seq_len
    nothing = np.zeros((1, length), np.int64)
    batches = run.batches.validation_batches()
    for _ in range(run.batches.validation_rounds):
        tokens_BL, targets_BL = next(batches, (nothing, nothing))
        total = run.model.loss_sum(torch.from_numpy(tokens_BL), torch.from_numpy(targets_BL))
        if tokens_BL is not nothing:
            here += (total, tokens_BL.size / run.model.pipeline_ranks)
    everywhere = np.empty_like(here)
    run.job.comm.Allreduce(here, everywhere)
    return float(everywhere[0] / everywhere[1])


def evaluation_steps(config: LlmConfig) -> set[int]:
    """Return the steps after which the validation loss is taken: equal distances, the last at the end."""
    n = min(config.train.evaluations, config.steps)
    return {round(config.steps * (i + 1) / n) for i in range(n)}


def save(run: Training) -> None:
    """Commit a checkpoint: weights, moments, random state; the data's cursor is the step itself."""
    pieces = []
    for key, array in _parts(run.model, run.optimizer).items():
        box = run.model.boxes[key.partition("/")[2]]
        if box.first_copy:
            pieces.append(checkpoint.Piece(key, array, box.shape, box.offset))
    if run.job.rank == 0:
        pieces += [checkpoint.whole(key, array) for key, array in _common(run.optimizer).items()]
    meta = {
        "text_sha256": run.tokens_file.text_sha256,
        "val_loss": _json(run.val_loss),
        "wall_s": run.wall_s,
    }
    run.metrics.flush()  # a resumed run keeps the rows up to its checkpoint, so they must be there
    checkpoint.save(run.job.comm, run.job.run.checkpoints, run.step, pieces, meta)


def wanted(model: ParallelModel, adamw: optimizer.AdamW) -> dict[str, checkpoint.Wanted]:
    """Return what this rank needs of a checkpoint."""
    parts = {
        key: checkpoint.Wanted(box.shape, box.offset, array.shape, array.dtype)
        for key, array in _parts(model, adamw).items()
        for box in [model.boxes[key.partition("/")[2]]]
    }
    common = {
        key: checkpoint.Wanted(array.shape, (0,) * array.ndim, array.shape, array.dtype)
        for key, array in _common(adamw).items()
    }
    return {**parts, **common}


def _parts(model: ParallelModel, adamw: optimizer.AdamW) -> dict[str, np.ndarray]:
    """Return the state that the model's boxes place, as views, by `KIND/NAME`."""
    more = {f"state/{name}": tensor.numpy() for name, tensor in model.state().items()}
    return {**optimizer.state(model.parameters(), adamw), **more}


def _common(adamw: optimizer.AdamW) -> dict[str, np.ndarray]:
    """Return the state that is the same on all ranks."""
    return {"optimizer/count": adamw.count.numpy(), "rng/torch": torch.get_rng_state().numpy()}


def restore(run: Training, saved: checkpoint.Checkpoint) -> None:
    """Take the state back from a checkpoint, bit by bit. Raises RefusedError when the text is another one."""
    if saved.meta["text_sha256"] != run.tokens_file.text_sha256:
        raise RefusedError(
            f"{run.job.run.path}: step {saved.step} was trained on a text with SHA-256 "
            f"{saved.meta['text_sha256'][:12]}, data.source now holds {run.tokens_file.text_sha256[:12]}; "
            "bring the text back, or remove this run's directory to start it anew"
        )
    for key, array in _parts(run.model, run.optimizer).items():
        array[...] = saved.arrays[key]
    run.optimizer.count.fill_(float(saved.arrays["optimizer/count"]))
    torch.set_rng_state(torch.tensor(saved.arrays["rng/torch"]))
    run.step, run.wall_s = saved.step, saved.meta["wall_s"]
    run.val_loss = float("nan") if saved.meta["val_loss"] is None else saved.meta["val_loss"]
    run.logged_tokens = run.tokens
    run.job.step = run.step
    for sentence in saved.skipped:
        run.metrics.event("damaged", sentence, run.step)
        if run.job.rank == 0:
            print(f"rank 0: {sentence}; going on from step {saved.step}", file=sys.stderr)
    run.metrics.event("restored", f"from step {saved.step}", run.step)


def _meta(
    job: bootstrap.Job, config: LlmConfig, tokens: TokenFile, restore_step: int
) -> dict[str, str | int]:
    return {
        "workflow": "llm",
        "run_id": job.run.path.name,
        "attempt": job.attempt,
        "restore_step": restore_step,
        "world_size": job.world_size,
        "layout": json.dumps(layout_of(config, job.world_size).degrees),
        "config": json.dumps(config.model_dump(mode="json")),
        "flops_convention": size(config).flops_convention,
        "text_sha256": tokens.text_sha256,
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
