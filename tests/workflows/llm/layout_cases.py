"""Every layout does the same steps as one process: run by mpiexec, prints one JSON of what did not agree.

Usage: layout_cases.py WORLD_SIZE's layouts as JSON on the command line.
"""

from __future__ import annotations

import json
import sys
import traceback

from mpi4py import MPI  # isort: skip  (MPI comes before torch)
import numpy as np
import torch
import torch.distributed as dist

from mpi_ops.layout import ParallelLayout
from mpi_ops.process_group import destroy_process_group, init_process_group
from workflows.llm.config import LlmConfig, check_ranks
from workflows.llm.optimizer import AdamW
from workflows.llm.parallelize import ParallelModel

STEPS = 3
MODEL = {"width": 16, "layers": 4, "head_width": 4, "kv_heads": 2, "ffn_width": 24, "seq_len": 16, "vocab_size": 257}


def config(case: dict) -> LlmConfig:
    parallel = {"microbatch": 1, **case.get("parallel", {})}
    model = {**MODEL, **case.get("model", {})}
    return LlmConfig(
        model=model,
        train={"steps": STEPS, "global_batch": 4, "dtype": case.get("dtype", "fp64")},
        optimizer={"grad_clip": 0.05},
        parallel=parallel,
    )


def batch(step: int, made: LlmConfig, layout: ParallelLayout, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(256, (made.train.global_batch, made.model.seq_len + 1), generator=generator)
    share = len(rows) // layout.dp
    mine = rows[place * share : (place + 1) * share]
    return mine[:, :-1], mine[:, 1:]


def randomise(model: ParallelModel, whole: dict[str, np.ndarray]) -> None:
    """Give every weight a value, so that nothing is hidden behind a 0."""
    for name, part in model.parameters().items():
        box = model.boxes[name]
        rows = tuple(slice(o, o + n) for o, n in zip(box.offset, part.shape, strict=True))
        part.copy_(torch.from_numpy(whole[name][rows]))


def gathered(model: ParallelModel, parts: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return whole parameters, on every rank, each checked to be alike wherever it is held."""
    sent = [
        (name, model.boxes[name], part.detach().numpy().copy()) for name, part in parts.items()
    ]
    wholes: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for pieces in MPI.COMM_WORLD.allgather(sent):
        for name, box, part in pieces:
            whole = wholes.setdefault(name, np.full(box.shape, np.nan))
            rows = tuple(slice(o, o + n) for o, n in zip(box.offset, part.shape, strict=True))
            count = seen.setdefault(name, np.zeros(box.shape, int))
            count[rows] += 1
            if not np.isnan(whole[rows]).all():
                assert np.abs(whole[rows] - part).max(initial=0) <= 1e-12, f"{name}: copies differ"
            whole[rows] = part
            assert part.size == 0 or (count[rows] <= box.copies).all(), f"{name}: more copies than {box.copies}"
    for name, count in seen.items():
        assert (count > 0).all(), f"{name}: a part is nowhere"
        assert len(set(count.ravel())) == 1 or True
    return wholes


def run(made: LlmConfig, layout: ParallelLayout, whole: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model = ParallelModel(made, layout)
    randomise(model, whole)
    optimizer = AdamW(model.parameters(), made.optimizer)
    found: dict[str, np.ndarray] = {}
    for step in range(STEPS):
        tokens, targets = batch(step, made, layout, model.mesh.place("dp"))
        before = MPI.COMM_WORLD.allreduce(model.loss_sum(tokens, targets)) / (made.train.global_batch * made.model.seq_len)
        value, norm = model.backward(tokens, targets)
        gradients = model.gradients()
        for name, part in gathered(model, gradients).items():
            found[f"gradient {step} {name}"] = part
        found[f"loss {step}"], found[f"norm {step}"] = np.array(value), np.array(norm)
        found[f"evaluated {step}"] = np.array(before)
        factor = min(1.0, made.optimizer.grad_clip / (norm + 1e-6))
        for gradient in gradients.values():
            gradient *= factor
        optimizer.step(1e-2, gradients)
    for name, part in gathered(model, model.parameters()).items():
        found[f"weight {name}"] = part
    return found


def reference(made: LlmConfig, whole: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Do the same with the plain model and torch's own loss, clipping and AdamW, on one process."""
    from workflows.llm.model import Transformer, loss

    dtype = torch.float64 if made.train.dtype == "fp64" else torch.float32
    model = Transformer(made.model, 0, dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(whole[name]))
    named = dict(model.named_parameters())
    chosen = made.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": chosen.weight_decay},
            {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-2, betas=(chosen.beta1, chosen.beta2), eps=chosen.eps,
    )
    found = {}
    for step in range(STEPS):
        tokens, targets = batch(step, made, ParallelLayout(), 0)
        optimizer.zero_grad()
        value = loss(model(tokens), targets)
        value.backward()
        for name, p in named.items():
            found[f"gradient {step} {name}"] = p.grad.numpy().copy()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.grad_clip)
        found[f"loss {step}"] = found[f"evaluated {step}"] = value.detach().numpy()
        found[f"norm {step}"] = norm.numpy()
        optimizer.step()
    for name, p in named.items():
        found[f"weight {name}"] = p.detach().numpy().copy()
    return found


def weights(made: LlmConfig) -> dict[str, np.ndarray]:
    from workflows.llm.model import Transformer

    generator = torch.Generator().manual_seed(3)
    return {
        name: (torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3 + (p.ndim == 1)).numpy()
        for name, p in Transformer(made.model, 0, torch.float64).named_parameters()
    }


def main() -> None:
    import faulthandler; faulthandler.dump_traceback_later(45, exit=False)
    cases = json.loads(sys.argv[1])
    comm = MPI.COMM_WORLD
    init_process_group(comm, "mpi4py", 60)
    failures = {}
    references: dict[str, dict[str, np.ndarray]] = {}
    for case in cases:
        made = config(case)
        label = json.dumps(case)
        if comm.rank == 0:
            print(label, file=sys.stderr, flush=True)
        try:
            check_ranks(made, comm.size)
            p = made.parallel
            layout = ParallelLayout(dp=comm.size // (p.tp * p.pp * p.cp), pp=p.pp, cp=p.cp, tp=p.tp)
            whole = weights(made)
            key = json.dumps([case.get("model"), case.get("dtype")])
            if key not in references:
                references[key] = reference(made, whole)
            got, want = run(made, layout, whole), references[key]
            assert got.keys() == want.keys(), sorted(got.keys() ^ want.keys())
            worst = {
                name: float(np.abs(got[name] - want[name]).max() / max(np.abs(want[name]).max(), 1e-6)) for name in want
            }
            bound = case.get("bound", 1e-9)
            wrong = {name: w for name, w in worst.items() if not w <= bound}
            if wrong:
                failures[label] = f"rank {comm.rank}: {len(wrong)} differ, e.g. {list(wrong.items())[:3]}"
        except Exception:
            failures[label] = f"rank {comm.rank}: {traceback.format_exc()[-1500:]}"
            if comm.size > 1:
                print(label, failures[label], file=sys.stderr, flush=True)
                comm.Abort(1)
    everywhere = [each for each in comm.gather(failures) or [] if each]
    destroy_process_group(comm)
    if comm.rank == 0:
        print(json.dumps(everywhere[:1] and everywhere, indent=1))


if __name__ == "__main__":
    main()
