"""A program that does not leave torch.distributed: at its end a callback and an operation are under way."""

from __future__ import annotations

import os
import time

from mpi4py import MPI  # isort: skip  (MPI comes before torch)
import torch
import torch.distributed as dist

from mpi_ops.process_group import init_process_group

init_process_group(MPI.COMM_WORLD, timeout_s=20)
done = dist.all_reduce(torch.ones(3), async_op=True).get_future()
# One write each: an unbuffered `print` makes two, and another rank's line may come between them.
called = done.then(lambda _: (os.write(1, b"called\n"), time.sleep(2), os.write(1, b"returned\n")))
done.wait()
dist.all_reduce(torch.ones(3), group=dist.new_group(), async_op=True)
