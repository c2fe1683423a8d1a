"""Day one on a machine: does a node do what runs will ask of it? `python -m mpi4py -m launch.acceptance [SITE]`.

Started as ranks are, on one node: `srun OPTIONS python -m mpi4py -m launch.acceptance frontier`. Rank 0 prints a line a
check: ok, FAILED or not run, and why; the end is 3 if one failed. Collectives are held against what they are by
arithmetic, in small whole numbers that every sum holds exactly, so every backend must give the same bits.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from mpi4py import MPI  # isort: skip  (MPI comes before torch)
import torch
import torch.distributed as dist
from torch import Tensor

from launch.binding import bind
from launch.errors import LaunchError
from mpi_ops.process_group import destroy_process_group, init_process_group
from slurm.site import load_site

NUMBERS = 1000
"""Of each rank, in a collective."""
GEMM, GEMMS = {"cpu": 1024, "cuda": 8192}, 10
NO_GPU = "torch sees no GPU here"
Check = tuple[str, str]
"""What was checked; and `ok`, `FAILED` or `not run`, with why."""


def main() -> None:
    """Run as one rank."""
    comm = MPI.COMM_WORLD
    cuda = torch.cuda.is_available()
    init_process_group(comm)
    failed = False
    for name, outcome in checks(comm, cuda, sys.argv[1] if len(sys.argv) > 1 else ""):
        everywhere = comm.allgather(outcome)
        wrong = [(rank, each) for rank, each in enumerate(everywhere) if each.startswith("FAILED")]
        failed |= bool(wrong)
        if comm.rank == 0:
            print(
                f"{name}: " + (f"{wrong[0][1]} (rank {wrong[0][0]})" if wrong else everywhere[0]), flush=True
            )
    destroy_process_group(comm)
    MPI.Finalize()
    sys.exit(3 if failed else 0)


def checks(comm: MPI.Intracomm, cuda: bool, site: str) -> Iterator[Check]:
    """Yield every check and its outcome on this rank; the same checks on every rank."""
    yield "binding", binding(comm, site)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    backends = {"mpi4py": "cpu", "gloo": "cpu", "nccl": "cuda"}
    for backend, kind in backends.items():
        if kind == "cuda" and not cuda:
            yield f"collectives over {backend}", f"not run: {NO_GPU}"
            continue
        group = dist.new_group(backend=backend)
        for op, collective in COLLECTIVES.items():
            for dtype in (torch.float32, torch.bfloat16):
                where = device if kind == "cuda" else torch.device("cpu")
                yield f"{op} of {dtype} over {backend}", outcome(collective, group, comm, dtype, where)
    yield "matrix product on a CPU", gemm(torch.device("cpu"), torch.float32)
    yield "matrix product on a GPU", gemm(device, torch.bfloat16) if cuda else f"not run: {NO_GPU}"
    yield (
        "GPU-aware MPI",
        gpu_aware(comm, device) if cuda else f"not run: {NO_GPU}",
    )  # last: it may end us all


def binding(comm: MPI.Intracomm, site: str) -> str:
    """Hold this rank's GPU and cores against the site."""
    scheduler = load_site(site).scheduler if site else None
    if scheduler is None or scheduler.gpus is None:
        return f"not run: {f'site {site} has no GPUs' if site else 'no site was named'}"
    try:
        made = bind(comm, scheduler.gpus)
    except LaunchError as error:
        return f"FAILED: {error}"
    if torch.cuda.is_available():
        torch.cuda.set_device(made.device)
    return f"ok: rank 0 has GPU {made.gpu} as device {made.device}, interfaces {' '.join(made.nics) or 'unknown'}"


def outcome(
    collective: Callable[..., tuple[Tensor, Tensor]],
    group: dist.ProcessGroup,
    comm: MPI.Intracomm,
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    """Do a collective and hold what came against what is due."""
    try:
        came, due = collective(group, comm.rank, comm.size, lambda rank: numbers(rank, dtype, device))
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "ok" if torch.equal(came, due) else "FAILED: other numbers than those that are due"


def numbers(rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what a rank brings: small whole numbers."""
    return ((torch.arange(NUMBERS, device=device) + 3 * rank) % 7).to(dtype)


def _all_reduce(group, rank, size, brings):  # type: ignore[no-untyped-def]
    came = brings(rank)
    dist.all_reduce(came, group=group)
    return came, sum(brings(r) for r in range(size))


def _broadcast(group, rank, size, brings):  # type: ignore[no-untyped-def]
    came = brings(rank)
    dist.broadcast(came, size - 1, group=group)
    return came, brings(size - 1)


def _all_gather(group, rank, size, brings):  # type: ignore[no-untyped-def]
    came = brings(rank).repeat(size)
    dist.all_gather_single(came, brings(rank), group=group)
    return came, torch.cat([brings(r) for r in range(size)])


def _reduce_scatter(group, rank, size, brings):  # type: ignore[no-untyped-def]
    came = brings(rank)
    dist.reduce_scatter_single(came, torch.cat([brings(rank + part) for part in range(size)]), group=group)
    return came, sum(brings(r + rank) for r in range(size))


def _all_to_all(group, rank, size, brings):  # type: ignore[no-untyped-def]
    came = brings(rank).repeat(size)
    dist.all_to_all_single(came, torch.cat([brings(rank + part) for part in range(size)]), group=group)
    return came, torch.cat([brings(r + rank) for r in range(size)])


def _send_and_receive(group, rank, size, brings):  # type: ignore[no-untyped-def]
    came = brings(rank)
    right, left = (rank + 1) % size, (rank - 1) % size
    if size > 1:
        ops = [dist.P2POp(dist.isend, brings(rank), right, group), dist.P2POp(dist.irecv, came, left, group)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
    return came, brings(left)


COLLECTIVES = {
    "all_reduce": _all_reduce,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "send and receive": _send_and_receive,
}
"""Those that training uses."""


def gpu_aware(comm: MPI.Intracomm, device: torch.device) -> str:
    """Let MPI itself sum GPU memory. Where it cannot, it may end the process: that is an answer, too."""
    came = torch.ones(NUMBERS, device=device)
    torch.cuda.synchronize()
    comm.Allreduce(MPI.IN_PLACE, came)
    return "ok" if bool((came == comm.size).all()) else "FAILED: another sum than that which is due"


def gemm(device: torch.device, dtype: torch.dtype) -> str:
    """Return the best rate of a square matrix product on this rank, while all ranks do the same."""
    n = GEMM[device.type]
    ones = torch.ones(n, n, dtype=dtype, device=device)
    right = bool((ones @ ones == n).all())
    a, best_s = (
        torch.randn_like(ones),
        float("inf"),
    )  # equal numbers would cost a GPU less power: it would be faster
    for _ in range(GEMMS):
        began_s = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - began_s)
    return f"ok: {2 * n**3 / best_s:.3g} FLOP/s in {dtype}" if right else "FAILED: a wrong product"


if __name__ == "__main__":
    main()
