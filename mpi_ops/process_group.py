"""torch.distributed over an MPI communicator: one call to join, one to leave, for any backend."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch._C._distributed_c10d import TCPStore

from mpi_ops.errors import BackendError

Backend = Literal["mpi4py", "gloo", "nccl"]


def device_of(backend: Backend, place: int) -> torch.device:
    """Return where the tensors of a rank live that this backend moves: the CPU, or for nccl (RCCL) its GPU.

    A rank that sees one GPU, as srun binds them on Frontier, takes that; one that sees all of its node takes the one
    of its place there.

    Raises:
        BackendError: torch sees no GPU here.
    """
    if backend != "nccl":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendError(
            "backend nccl moves tensors between GPUs, and torch sees none here; take mpi4py or gloo"
        )
    return torch.device("cuda", place % torch.cuda.device_count())


def init_process_group(
    comm: MPI.Intracomm,
    backend: Backend = "mpi4py",
    timeout_s: float = 600.0,
    device: torch.device | None = None,
) -> None:
    """Make the ranks of `comm` the default process group of torch.distributed. `device` is this rank's, a GPU's only.

    Rank 0 opens a store on a port that the system picks and tells the others by MPI, so no address or port has
    to be configured. On one node it listens on loopback.

    Raises:
        BackendError: this torch is of another minor version than the backend is written for.

    Cost: one broadcast, one split of the communicator, and the store's own traffic with rank 0.
    """
    if backend == "mpi4py":
        from mpi_ops.backend import register

        register()
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    one_node = node.size == comm.size
    node.Free()
    host = "127.0.0.1" if comm.allreduce(one_node, MPI.LAND) else socket.gethostname()
    timeout = timedelta(seconds=timeout_s)
    port = 0
    if comm.rank == 0:
        store = TCPStore(host, 0, comm.size, is_master=True, timeout=timeout, wait_for_workers=False)
        port = store.port
    host, port = comm.bcast((host, port))
    if comm.rank != 0:
        store = TCPStore(host, port, comm.size, is_master=False, timeout=timeout)
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        store=store,
        rank=comm.rank,
        world_size=comm.size,
        timeout=timeout,
        pg_options=comm if backend == "mpi4py" else None,
        device_id=device if on_gpu else None,
    )


def destroy_process_group(comm: MPI.Intracomm) -> None:
    """Leave torch.distributed. Every rank calls it; rank 0's store goes down after the last one has left.

    Cost: one barrier.
    """
    comm.Barrier()  # gloo aborts when the store goes down under a rank that still needs it
    dist.destroy_process_group()
