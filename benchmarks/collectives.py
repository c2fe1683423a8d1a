"""Collectives through torch.distributed over the mpi4py backend, over gloo, and over bare mpi4py, side by side.

Each of the three is an MPI job of its own, so that gloo's threads disturb nobody; the jobs take turns, round by
round, and each number is the median over the rounds of the slowest rank's median call, its spread the rounds'
range over that. A size is that of the whole tensor: what all_gather fills and reduce_scatter reads.
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

JOBS = ("mpi4py", "gloo", "bare")
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
KIB, MIB = 2**10, 2**20
SIZES = (KIB, 16 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB)
QUIET_LOAD = 0.3
ITEM_BYTES = 4


def calls(job: str, size_bytes: int) -> dict[str, Callable[[], object]]:
    """Return each operation as a call on fp32 tensors of `size_bytes` (rounded down to whole shares)."""
    import torch
    import torch.distributed as dist
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    share = torch.ones(size_bytes // ITEM_BYTES // comm.size)
    whole = torch.zeros(len(share) * comm.size)
    if job == "bare":
        part, everything = ((MPI.buffer.frombuffer(each.numpy()), MPI.FLOAT) for each in (share, whole))
        return {
            "all_reduce": lambda: comm.Allreduce(MPI.IN_PLACE, everything),
            "all_gather": lambda: comm.Allgather(part, everything),
            "reduce_scatter": lambda: comm.Reduce_scatter_block(everything, part),
            "broadcast": lambda: comm.Bcast(everything, 0),
        }
    return {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_single(whole, share),
        "reduce_scatter": lambda: dist.reduce_scatter_single(share, whole),
        "broadcast": lambda: dist.broadcast(whole, 0),
    }


def median_us(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call on this rank, after a warm-up."""
    times_s = []
    for _ in range(repeats + 3):
        began_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - began_s)
    return statistics.median(times_s[3:]) * 1e6


def rank_main(job: str, sizes_bytes: list[int]) -> None:
    """Run as one rank of a job; rank 0 prints {operation: {size: microseconds}}."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if job != "bare":
        from mpi_ops.process_group import destroy_process_group, init_process_group

        init_process_group(comm, job)
    found: dict[str, dict[int, float]] = {operation: {} for operation in OPERATIONS}
    for size_bytes in sizes_bytes:
        repeats = max(7, min(300, 64 * MIB // size_bytes))
        for operation, call in calls(job, size_bytes).items():
            comm.Barrier()
            found[operation][size_bytes] = comm.allreduce(median_us(call, repeats), MPI.MAX)
    if job != "bare":
        destroy_process_group(comm)
    if comm.rank == 0:
        print(json.dumps(found))


def run_job(job: str, ranks: int, sizes_bytes: list[int]) -> dict[str, dict[str, float]]:
    """Run one job and return what its rank 0 prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("MPIR_CVAR_ENABLE_HEAVY_YIELD", None)
    if ranks > (os.cpu_count() or 1):
        env["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"  # spinning ranks would starve those without a core
    launcher = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)]
    program = [sys.executable, "-W", "ignore", "-m", "mpi4py", __file__, "--job", job]
    argv = [*launcher, *program, "--sizes", *map(str, sizes_bytes)]
    return json.loads(subprocess.run(argv, env=env, check=True, stdout=subprocess.PIPE).stdout)


def measure(ranks: int, sizes_bytes: list[int], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each operation and size: microseconds and spread of each job, and the ratios."""
    seen = []
    for number in range(rounds):
        print(f"{ranks} ranks, round {number + 1} of {rounds}", file=sys.stderr)
        seen.append({job: run_job(job, ranks, sizes_bytes) for job in JOBS})
    rows = []
    for operation in OPERATIONS:
        for size_bytes in sizes_bytes:
            row: dict[str, Any] = {"ranks": ranks, "operation": operation, "size_bytes": size_bytes}
            for job in JOBS:
                times_us = [each[job][operation][str(size_bytes)] for each in seen]
                row[f"{job}_us"] = statistics.median(times_us)
                row[f"{job}_spread"] = (max(times_us) - min(times_us)) / row[f"{job}_us"]
            row["gloo_over_mpi4py"] = row["gloo_us"] / row["mpi4py_us"]
            row["mpi4py_over_bare"] = row["mpi4py_us"] / row["bare_us"]
            rows.append(row)
    return rows


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Return the targets of two ranks' all_reduce beside what was measured."""
    lines = []
    for row in rows:
        if (row["ranks"], row["operation"]) != (2, "all_reduce"):
            continue
        size_bytes, ratio = row["size_bytes"], row["mpi4py_over_bare"]
        if size_bytes == KIB:
            over_us = row["mpi4py_us"] - row["bare_us"]
            lines.append(f"all_reduce, 2 ranks, 1 KiB: target <= 15 us over bare, measured {over_us:.1f} us")
        elif size_bytes == MIB or size_bytes >= 16 * MIB:
            target = 1.3 if size_bytes == MIB else 1.1
            what = f"all_reduce, 2 ranks, {size_bytes // MIB} MiB"
            lines.append(f"{what}: target <= {target} x bare, measured {ratio:.2f} x")
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text, spreads in percent."""
    head = f"{'ranks':>5} {'operation':15} {'KiB':>6} " + " ".join(f"{f'{job} us':>17}" for job in JOBS)
    lines = [f"{head} {'gloo/mpi4py':>12} {'mpi4py/bare':>12}"]
    for row in rows:
        times = " ".join(f"{row[f'{job}_us']:10.1f} ±{row[f'{job}_spread'] * 50:4.0f}%" for job in JOBS)
        place = f"{row['ranks']:5} {row['operation']:15} {row['size_bytes'] // KIB:6}"
        lines.append(f"{place} {times} {row['gloo_over_mpi4py']:12.2f} {row['mpi4py_over_bare']:12.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; or, started by itself with --job, run as one rank."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout in place of the table")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        rank_main(args.job, args.sizes)
        return
    load = os.getloadavg()[0]
    rows = [row for ranks in args.ranks for row in measure(ranks, args.sizes, args.rounds)]
    machine = {"load": load, "quiet": load < QUIET_LOAD, "cores": os.cpu_count(), "rounds": args.rounds}
    if args.json:
        print(json.dumps({"machine": machine, "rows": rows, "verdicts": verdicts(rows)}, indent=1))
        return
    print(table(rows))
    print("\n".join(verdicts(rows)))
    print(
        f"load before the start {load:.2f}: {'quiet' if load < QUIET_LOAD else 'NOT quiet, numbers mean little'}"
    )


if __name__ == "__main__":
    main()
