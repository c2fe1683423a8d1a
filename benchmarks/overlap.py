"""How much of the data-parallel all-reduce disappears behind backward, where backward leaves the core alone.

A GPU computes while its host has nothing to do. Here every layer's backward sleeps instead: what a rank then does is
to add its gradients to the buckets and to move messages. `compute` is the step without messages, `communication` the
step without sleeping; both contain the adding up, which shares its core with the messages, so a step that does all of
it can be no faster than either. The target is step <= 1.15 x the larger of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

QUIET_LOAD = 0.3
TARGET = 1.15
LAYERS, ELEMENTS = 32, 1 << 20


def job(sleep_s: float, communicate: bool, steps: int) -> None:
    """Run as one rank; rank 0 prints the median seconds of a step."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    import torch
    import torch.distributed as dist

    from launch import heap
    from mpi_ops.gradient_buckets import GradientBuckets
    from mpi_ops.process_group import destroy_process_group, init_process_group

    torch.set_num_threads(1)
    heap.keep()  # as a run's ranks do: MPI's own buffers are taken anew for every message
    init_process_group(comm, "mpi4py")
    gradient = torch.full((ELEMENTS,), 1.0 + comm.rank)

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:  # noqa: ARG004  (what autograd passes)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ARG004
            time.sleep(sleep_s)
            return gradients[0], gradient

    weights = {str(i): torch.nn.Parameter(torch.zeros(ELEMENTS)) for i in range(LAYERS)}
    buckets = GradientBuckets(weights, dist.group.WORLD if communicate else None)
    times_s = []
    for _ in range(steps + 1):
        buckets.clear(1)
        comm.Barrier()
        began_s = time.perf_counter()
        x = torch.zeros((), requires_grad=True)
        for weight in weights.values():
            x = Layer.apply(x, weight)  # type: ignore[no-untyped-call]
        x.backward()
        buckets.reduce()
        times_s.append(time.perf_counter() - began_s)
    total = comm.size * (comm.size + 1) / 2 if communicate else 1.0 + comm.rank
    if any(not torch.equal(weight.grad, torch.full_like(weight, total)) for weight in weights.values()):
        sys.exit("a gradient is not the sum over the ranks")  # a wrong result has no speed
    median_s = comm.allreduce(statistics.median(times_s[1:]), MPI.MAX)
    destroy_process_group(comm)
    if comm.rank == 0:
        print(json.dumps(median_s), flush=True)


def measure(sleep_s: float, communicate: bool, steps: int) -> float:
    """Run one job of two ranks to its end and return what it printed."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    argv = [str(mpiexec), "-n", "2", sys.executable, "-m", "mpi4py", __file__, "--job", "--steps", str(steps)]
    argv += ["--sleep", str(sleep_s), *(["--communicate"] if communicate else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"ended with {done.returncode}\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout))


def main() -> None:
    """Take the measurements and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout in place of the table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument(
        "--compute", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="over communication"
    )
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sleep", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--communicate", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(options.sleep, options.communicate, options.steps)
        return
    load = os.getloadavg()[0]
    rounds, steps = range(options.rounds), options.steps
    communication_s = statistics.median(measure(0.0, True, steps) for _ in rounds)
    rows = []
    for share in options.compute:
        sleep_s = share * communication_s / LAYERS
        pairs = [(measure(sleep_s, False, steps), measure(sleep_s, True, steps)) for _ in rounds]
        compute_s, step_s = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = step_s / max(compute_s, communication_s)
        rows.append(
            {"compute_s": compute_s, "communication_s": communication_s, "step_s": step_s, "ratio": ratio}
        )
    if options.json:
        machine = {"load_before": load, "quiet": load < QUIET_LOAD, "target": TARGET}
        print(json.dumps({**machine, "rows": rows}, indent=1))
        return
    print(f"{'compute, s':>12}{'communication, s':>18}{'step, s':>10}{'step / larger':>15}   target {TARGET}")
    for row in rows:
        print(
            f"{row['compute_s']:12.4f}{row['communication_s']:18.4f}{row['step_s']:10.4f}{row['ratio']:15.3f}"
        )
    print(f"load before the start {load:.2f}: {'quiet' if load < QUIET_LOAD else 'NOT QUIET, do not quote'}")


if __name__ == "__main__":
    main()
