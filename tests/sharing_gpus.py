"""Runs a module as a rank that may share its GPU with others: `python -m mpi4py -m tests.sharing_gpus MODULE ARGS`.

NCCL refuses two ranks of one host on one GPU. Here each says that it is a host of its own; they talk over loopback
then, slowly, and do all else as on a node with a GPU for each. RCCL has not been tried.
"""

from __future__ import annotations

import os
import runpy
import sys

from mpi4py import MPI

if __name__ == "__main__":
    os.environ |= {
        "NCCL_HOSTID": f"rank-{MPI.COMM_WORLD.rank}",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_IB_DISABLE": "1",
    }
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
