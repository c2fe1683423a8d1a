"""Steps of one small Llama under several layouts: this suite over MPI beside plain torch over gloo.

Plain torch is what its own parts give: DTensor's parallelize_module, torch.distributed.pipelining with 1F1B,
DistributedDataParallel and torch.optim.AdamW, on the same network from the same weights. Each layout of each of the
two is an MPI job of its own; the jobs take turns, round by round. A number is the median over the rounds of the
median step. `ideal` is this suite's one process divided by the ranks; for a pipeline, by what its slowest stage and
its bubble leave. `apart` are as many processes beside each other, each with its share of the batch and no message:
what two cores that share caches and memory leave of the ideal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUIET_LOAD = 0.3
MODEL = {
    "width": 256,
    "ffn_width": 1024,
    "layers": 4,
    "head_width": 32,
    "vocab_size": 4096,
    "seq_len": 128,
    "tied_head": False,
}
BATCH, MICROBATCH = 32, 4
LAYOUTS: dict[str, dict[str, int]] = {
    "one process": {},
    "dp=2": {"dp": 2},
    "pp=2": {"pp": 2},
    "tp=2": {"tp": 2},
    "tp=2 x pp=2": {"tp": 2, "pp": 2},
}
Step = Callable[[Any, Any], float]


def ours(degrees: dict[str, int], comm: Any, batch: int = BATCH) -> tuple[Step, slice]:
    """Return this suite's step, and which rows of a batch this rank gives it."""
    from mpi_ops.process_group import init_process_group
    from workflows.llm.config import LlmConfig
    from workflows.llm.optimizer import AdamW, clip
    from workflows.llm.parallelize import ParallelModel
    from workflows.llm.ranks import layout_of

    split = {axis: degree for axis, degree in degrees.items() if axis != "dp"}
    config = LlmConfig.model_validate(
        {
            "model": MODEL,
            "train": {"steps": 1, "global_batch": batch},
            "parallel": {"microbatch": MICROBATCH, **split},
        }
    )
    init_process_group(comm, "mpi4py")
    layout = layout_of(config, comm.size)
    model = ParallelModel(config, layout)
    model.draw()
    adamw = AdamW(model.parameters(), config.optimizer)

    def step(tokens: Any, targets: Any) -> float:
        value, norm = model.backward(tokens, targets)
        gradients = model.gradients()
        clip(gradients.values(), norm, 1.0)
        adamw.step(1e-3, gradients)
        return value

    share, place = batch // layout.dp, model.mesh.place("dp")
    return step, slice(place * share, (place + 1) * share)


def apart(_: dict[str, int], comm: Any) -> tuple[Step, slice]:
    """Return this suite's step of one process on a rank's share of the batch."""
    from mpi4py import MPI

    return ours({}, MPI.COMM_SELF, BATCH // comm.size)


def torchs(degrees: dict[str, int], comm: Any) -> tuple[Step, slice]:
    """Return the step that torch's own parts make over gloo, without clipping; and this rank's rows."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from torch.nn.parallel import DistributedDataParallel

    from mpi_ops.process_group import init_process_group
    from workflows.llm.config import ModelConfig
    from workflows.llm.model import Transformer, loss
    from workflows.llm.ranks import stage_layers

    init_process_group(comm, "gloo")
    dp, pp, tp = (degrees.get(axis, 1) for axis in ("dp", "pp", "tp"))
    mesh = init_device_mesh("cpu", (dp, pp, tp), mesh_dim_names=("dp", "pp", "tp"))
    config = ModelConfig.model_validate(MODEL)
    place = mesh["pp"].get_local_rank()
    model: Any = Transformer(config, 0, layers=stage_layers(config, pp)[place])
    if tp > 1:
        names = [name for name, _ in model.named_modules()]  # the order decides who sends what when
        plan = {
            name: RowwiseParallel() if name.endswith(("wo", "down")) else ColwiseParallel()
            for name in names
            if name.endswith(("wq", "wk", "wv", "wo", "gate", "up", "down"))
        }
        plan |= {"embedding": RowwiseParallel(input_layouts=Replicate())} if "embedding" in names else {}
        plan |= {"head": ColwiseParallel(output_layouts=Replicate())} if "head" in names else {}
        parallelize_module(model, mesh["tp"], plan)
    if dp > 1:
        model = DistributedDataParallel(model)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=tp == 1)
    share = BATCH // dp
    n = share // MICROBATCH

    def accumulate(tokens: Any, targets: Any) -> float:
        total = 0.0
        for i in range(n):
            rows = slice(i * MICROBATCH, (i + 1) * MICROBATCH)
            if dp > 1:
                model.require_backward_grad_sync = i == n - 1
            value = loss(model(tokens[rows]), targets[rows]) / n
            value.backward()
            total += value.item()
        return total

    if pp > 1:
        stage = PipelineStage(model, place, pp, torch.device("cpu"), group=mesh["pp"].get_group())
        schedule = Schedule1F1B(stage, n, loss_fn=loss)

    def pipe(tokens: Any, targets: Any) -> float:
        losses: list[Any] = []
        if place == 0:
            schedule.step(tokens)
        else:
            schedule.step(target=targets, losses=losses)
        return sum(each.item() for each in losses) / n

    def step(tokens: Any, targets: Any) -> float:
        adamw.zero_grad()
        value = pipe(tokens, targets) if pp > 1 else accumulate(tokens, targets)
        adamw.step()
        return value

    first = mesh["dp"].get_local_rank() * share
    return step, slice(first, first + share)


def job(which: str, layout: str, steps: int) -> None:
    """Run as one rank of one job; rank 0 prints seconds a step and the first and last loss."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    import torch

    from launch import heap

    torch.set_num_threads(1)
    heap.keep()  # as a run's ranks do; torch's parts gain by it, too
    step, rows = {"ours": ours, "torch": torchs, "apart": apart}[which](LAYOUTS[layout], comm)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(MODEL["vocab_size"], (BATCH, MODEL["seq_len"] + 1), generator=generator)[rows]
    times_s, values = [], []
    for _ in range(steps + 1):
        comm.Barrier()
        began_s = time.perf_counter()
        values.append(step(batch[:, :-1], batch[:, 1:]))
        comm.Barrier()
        times_s.append(time.perf_counter() - began_s)
    # Ours is the global mean on every rank; torch's the mean of a rank's rows, 0 where the last stage is not.
    alike = comm.size if which == "ours" else comm.size // LAYOUTS[layout].get("pp", 1)
    shown = [comm.allreduce(value) / alike for value in (values[0], values[-1])]
    if comm.rank == 0:
        print(
            json.dumps({"step_s": statistics.median(times_s[1:]), "first": shown[0], "last": shown[1]}),
            flush=True,
        )
    comm.Barrier()
    os._exit(
        0
    )  # gloo's threads and torch's pipelines differ in how they like to be ended; nothing is left to save


def measure(which: str, layout: str, steps: int) -> dict[str, float]:
    """Run one job to its end and return what it printed."""
    ranks = 1
    for degree in LAYOUTS[layout].values():
        ranks *= degree
    mpiexec = Path(sys.executable).parent / "mpiexec"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if ranks > len(os.sched_getaffinity(0)):
        environment["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"
    argv = [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "mpi4py", __file__]
    argv += ["--job", which, "--layout", layout, "--steps", str(steps)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"{which}, {layout}: ended with {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def bound(layout: str) -> float:
    """Return the share of one process's step that the layout cannot go below."""
    from workflows.llm.config import ModelConfig
    from workflows.llm.ranks import stage_layers

    degrees, config = LAYOUTS[layout], ModelConfig.model_validate(MODEL)
    ideal = 1 / degrees.get("dp", 1) / degrees.get("tp", 1)
    pp = degrees.get("pp", 1)
    if pp > 1:
        block = config.block_matmul_parameters() + 2 * config.seq_len * config.width
        head = config.vocab_size * config.width
        costs = [len(layers) * block for layers in stage_layers(config, pp)]
        costs[-1] += head
        n = BATCH // MICROBATCH
        # Every microbatch passes the slowest stage; the first and the last one each of the others, too.
        ideal *= (n * max(costs) + sum(costs) - max(costs)) / n / sum(costs)
    cores = len(os.sched_getaffinity(0))
    return max(ideal, 1 / cores)


def main() -> None:
    """Take the measurements and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout in place of the table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--layout", choices=LAYOUTS, nargs="+", default=list(LAYOUTS))
    parser.add_argument("--job", choices=("ours", "torch", "apart"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(options.job, options.layout[0], options.steps)
    load = os.getloadavg()[0]
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for layout in options.layout:
            for which in ("ours", "torch", *(["apart"] if "dp" in LAYOUTS[layout] else [])):
                taken.setdefault((which, layout), []).append(measure(which, layout, options.steps))
    step_s = {key: statistics.median(each["step_s"] for each in found) for key, found in taken.items()}
    alone_s = step_s.get(("ours", "one process"))
    rows = []
    for layout in options.layout:
        mine, theirs = step_s["ours", layout], step_s["torch", layout]
        spread = [each["step_s"] for each in taken["ours", layout]]
        row: dict[str, Any] = {
            "layout": layout,
            "ours_s": mine,
            "ours_spread": (max(spread) - min(spread)) / mine,
            "torch_gloo_s": theirs,
            "speedup_over_torch_gloo": theirs / mine,
            "first_loss": [taken[which, layout][0]["first"] for which in ("ours", "torch")],
            "last_loss": [taken[which, layout][0]["last"] for which in ("ours", "torch")],
        }
        if alone_s:
            row["share_of_ideal"] = alone_s * bound(layout) / mine
        if ("apart", layout) in step_s:
            row["share_of_apart"] = step_s["apart", layout] / mine
        rows.append(row)
    if options.json:
        print(json.dumps({"load_before": load, "quiet": load < QUIET_LOAD, "layouts": rows}, indent=1))
        return
    print(
        f"{'layout':14}{'ours, s':>10}{'torch/gloo, s':>15}{'speed-up':>10}{'of ideal':>10}{'of apart':>10}"
        "   losses (first, last)"
    )
    for row in rows:
        shares = [f"{row[key]:.3f}" if key in row else "" for key in ("share_of_ideal", "share_of_apart")]
        print(
            f"{row['layout']:14}{row['ours_s']:10.3f}{row['torch_gloo_s']:15.3f}"
            f"{row['speedup_over_torch_gloo']:10.2f}{shares[0]:>10}{shares[1]:>10}   "
            + " ".join(f"{value:.6f}" for value in (*row["first_loss"], *row["last_loss"]))
        )
    print(f"load before the start {load:.2f}: {'quiet' if load < QUIET_LOAD else 'NOT QUIET, do not quote'}")


if __name__ == "__main__":
    main()
