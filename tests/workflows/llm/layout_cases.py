"""Training steps under many layouts against one plain process: `layout_cases.py CASES [BACKEND]` with a list as JSON

of `{"model": {...}, "parallel": {...}, "masked": ..., "compile": ..., "dtype": ..., "bound": ...,
"only": [what to compare]}`. Prints `{case: what differs}` as JSON. The plain process computes on a CPU, whatever the
backend moves tensors between.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from dataclasses import fields
from pathlib import Path

from mpi4py import MPI  # isort: skip  (MPI comes before torch)
import numpy as np
import torch

from mpi_ops.backend import MpiProcessGroup
from mpi_ops.process_group import destroy_process_group, device_of, init_process_group
from workflows.llm.config import LlmConfig
from workflows.llm.model import Transformer, loss
from workflows.llm.optimizer import AdamW, clip
from workflows.llm.parallelize import ParallelModel
from workflows.llm.ranks import check_ranks, layout_of

STEPS, LR = 3, 1e-2
MODEL = {
    "width": 16,
    "layers": 4,
    "head_width": 4,
    "kv_heads": 2,
    "ffn_width": 24,
    "seq_len": 16,
    "vocab_size": 257,
}
Arrays = dict[str, np.ndarray]


def config_of(case: dict) -> LlmConfig:
    return LlmConfig(
        model={**MODEL, **case.get("model", {})},
        data={"mask_documents": case.get("masked", False)},
        train={"steps": STEPS, "global_batch": 4, "dtype": case.get("dtype", "fp64")}
        | {"compile": case.get("compile", False)},
        optimizer={"grad_clip": 0.05},
        parallel={"microbatch": 1, "timeout_s": 40, **case.get("parallel", {})},
    )


def batch(step: int, config: LlmConfig, pipeline: int = 0, pipelines: int = 1) -> tuple[torch.Tensor, ...]:
    """Return the sequences of one pipeline of several in a step's global batch, in documents of a few tokens."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(256, (config.train.global_batch, config.model.seq_len + 1), generator=generator)
    mine = rows.chunk(pipelines)[pipeline]
    if not config.data.mask_documents:
        return mine[:, :-1], mine[:, 1:]
    places = torch.arange(config.model.seq_len)
    starts = torch.where(mine[:, :-1] < 50, places, 0).cummax(1).values
    return mine[:, :-1], mine[:, 1:], places - starts


def drawn_weights(config: LlmConfig) -> Arrays:
    """Return a value for every weight, so that nothing is hidden behind a 0."""
    generator, shapes = torch.Generator().manual_seed(3), Transformer(config.model, 0).named_parameters()
    return {
        name: (torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3 + (p.ndim == 1)).numpy()
        for name, p in shapes
    }


def place(box, part: torch.Tensor) -> tuple[slice, ...]:
    return tuple(slice(first, first + n) for first, n in zip(box.offset, part.shape, strict=True))


def gathered(model: ParallelModel, parts: dict[str, torch.Tensor]) -> Arrays:
    """Return the whole arrays that the ranks hold parts of; each is held as often as the boxes say, and alike."""
    wholes: Arrays = {}
    counts: Arrays = {}
    saved: Arrays = {}
    sent = [(name, model.boxes[name], part.detach().cpu().numpy().copy()) for name, part in parts.items()]
    for name, box, part in (piece for pieces in MPI.COMM_WORLD.allgather(sent) for piece in pieces):
        whole = wholes.setdefault(name, np.full(box.shape, np.nan, part.dtype))
        count, save = (
            counts.setdefault(name, np.zeros(box.shape)),
            saved.setdefault(name, np.zeros(box.shape)),
        )
        rows = place(box, part)
        assert np.nanmax(np.abs(whole[rows] - part), initial=0) <= 1e-12 * max(
            1, np.abs(part).max(initial=0)
        ), f"{name}: copies differ"
        whole[rows] = part
        count[rows] += 1 / box.copies
        save[rows] += box.first_copy
    for name in wholes:
        assert np.allclose(counts[name], 1), f"{name}: not held as often as its boxes say"
        assert (saved[name] == 1).all(), f"{name}: not saved once"
    return wholes


def counts_on(model: ParallelModel) -> list[bool]:
    """Return, for each bucket that travels, whether exactly as many gradients came as it waits for in a step."""
    return [
        bucket.waiting == 0
        for buckets in getattr(model, "_buckets", ())
        if buckets._group is not None
        for bucket in buckets._buckets
    ]


def groups(model: ParallelModel) -> list[MpiProcessGroup]:
    held = [getattr(model.mesh, each.name) for each in fields(model.mesh)]
    return [group for group in held if isinstance(group, MpiProcessGroup)]


def parallel_steps(config: LlmConfig, weights: Arrays, device: torch.device) -> Arrays:
    """Return what the steps show, as whole arrays: losses, norms, gradients, and the weights after them."""
    comm = MPI.COMM_WORLD
    layout = layout_of(config, comm.size)
    model = ParallelModel(config, layout, device)
    assert {group.timeout_s for group in groups(model)} <= {60}, "a group that waits longer than the others"
    model.draw()
    drawn = Transformer(config.model, config.train.seed, model.dtype).state_dict()
    for name, whole in gathered(model, model.parameters()).items():
        assert np.array_equal(whole, drawn[name].numpy()), f"{name}: drawn otherwise than on one process"
    for name, part in model.parameters().items():
        part.copy_(torch.from_numpy(weights[name][place(model.boxes[name], part)]))
    optimizer = AdamW(model.parameters(), config.optimizer)
    found: Arrays = {}
    for step in range(STEPS):
        mine = batch(step, config, model.mesh.place("dp"), layout.dp)
        value, norm = model.backward(*mine)
        assert all(counts_on(model)), "a bucket of gradients left early, or never"
        total = comm.allreduce(model.loss_sum(*mine))  # here, weights that it keeps gathered miss the update
        found[f"evaluated {step}"] = np.array(total / config.tokens_per_step)
        found[f"loss {step}"], found[f"norm {step}"] = np.array(value), np.array(norm)
        gradients = model.gradients()
        found |= {f"gradient {step} {name}": whole for name, whole in gathered(model, gradients).items()}
        clip(gradients.values(), norm, config.optimizer.grad_clip)
        optimizer.step(LR, gradients)
        model.experts.balance()
        found |= {
            f"load {step} {layer}": load.cpu().numpy() for layer, load in enumerate(model.experts.loads)
        }
        found[f"dropped {step}"] = model.experts.dropped.sum().cpu().numpy()
    found |= {f"bias {name}": whole for name, whole in gathered(model, model.state()).items()}
    return found | {f"weight {name}": whole for name, whole in gathered(model, model.parameters()).items()}


def plain_steps(config: LlmConfig, weights: Arrays) -> Arrays:
    """Return the same from the plain model, with torch's own clipping and AdamW."""
    model, chosen = Transformer(config.model, 0, torch.float64), config.optimizer
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        parameter.data = torch.from_numpy(weights[name].copy())
    if config.model.tied_head:
        model.head.weight = model.embedding.weight
    groups = [
        {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": chosen.weight_decay},
        {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(chosen.beta1, chosen.beta2), eps=chosen.eps)
    mixtures = [block.ffn for block in model.blocks.values()] if config.model.experts else []
    found: Arrays = {}
    for step in range(STEPS):
        tokens, targets, *positions = batch(step, config)
        adamw.zero_grad()
        value = loss(model(tokens, *positions), targets)
        value.backward()
        found[f"loss {step}"] = found[f"evaluated {step}"] = value.detach().numpy()
        found |= {f"gradient {step} {name}": p.grad.numpy().copy() for name, p in named.items()}
        found[f"norm {step}"] = torch.nn.utils.clip_grad_norm_(named.values(), chosen.grad_clip).numpy()
        adamw.step()
        found[f"dropped {step}"] = np.zeros(())
        for layer, mixture in enumerate(mixtures):
            *load, dropped = mixture.take_loads().tolist()
            mixture.update_bias(torch.tensor(load), config.model.bias_rate)
            found[f"load {step} {layer}"] = np.array(load)
            found[f"dropped {step}"] += dropped
    for layer, mixture in enumerate(mixtures):
        found[f"bias blocks.{layer}.ffn.bias"] = mixture.bias.numpy()
    return found | {f"weight {name}": p.detach().numpy().copy() for name, p in named.items()}


def differences(got: Arrays, want: Arrays, bound: float) -> str:
    """Return in words which arrays differ by more than `bound` of their largest element, and how much."""
    if got.keys() != want.keys():
        return f"other arrays: {sorted(got.keys() ^ want.keys())}"
    # Key biases have a gradient of zero in exact arithmetic, so what is there is rounding.
    worst = {
        name: np.abs(got[name] - want[name]).max() / max(np.abs(want[name]).max(), 1e-6) for name in want
    }
    wrong = {name: float(value) for name, value in worst.items() if not value <= bound}
    return f"{len(wrong)} of {len(want)} differ: {dict(list(wrong.items())[:4])}" if wrong else ""


def main() -> None:
    comm = MPI.COMM_WORLD
    wanted: dict[str, Arrays] = {}
    failures: dict[str, str] = {}
    backend = sys.argv[2] if len(sys.argv) > 2 else "mpi4py"
    device = device_of(backend, comm.rank)
    init_process_group(comm, backend, 60, device)
    for case in json.loads(sys.argv[1]):
        config = config_of(case)
        if config.train.compile:
            from workflows.llm.compiler import prepare_compiler

            prepare_compiler(Path(tempfile.mkdtemp(prefix="isoflop-compiled-")) / str(comm.rank))
        try:
            check_ranks(config, comm.size)
            key = config.model.model_dump_json() + config.data.model_dump_json()
            weights = drawn_weights(config)
            if key not in wanted:
                wanted[key] = plain_steps(config, weights)
            found = parallel_steps(config, weights, device)
            shown, same = (
                {name: array for name, array in arrays.items() if name.split()[0] in case.get("only", name)}
                for arrays in (found, wanted[key])
            )
            if wrong := differences(shown, same, case.get("bound", 1e-9)):
                failures[json.dumps(case)] = wrong
            if config.train.compile and not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
                failures[json.dumps(case)] = "nothing was compiled"
        except Exception:
            print(
                f"{json.dumps(case)}, rank {comm.rank}: {traceback.format_exc()}", file=sys.stderr, flush=True
            )
            comm.Abort(1)
    everywhere = comm.gather(failures)
    destroy_process_group(comm)
    if everywhere is not None:
        print(json.dumps({case: words for each in everywhere for case, words in each.items()}))


if __name__ == "__main__":
    main()
