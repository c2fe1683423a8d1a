"""Gradients that live in a few flat buffers, added up over the data-parallel ranks while backward still runs.

Each parameter's gradient is a view into a bucket, so nothing is copied to send it. Buckets and the order in which
they travel follow from the order of the parameters alone: a resumed run adds up in the same order as an
uninterrupted one, to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 4 << 20
IDLE_SHARE = 0.5
"""Where backward computes for less than the rest of its time, a thread moves the gradients on meanwhile."""


@dataclass(slots=True)
class _Bucket:
    flat: Tensor
    size: int
    """Gradients that come in a microbatch."""
    waiting: int = 0
    """Gradients that are still to come."""
    work: Any = None


class GradientBuckets:
    """The gradients of some parameters, the last of which comes first in backward.

    Cost of one `reduce`: an all-reduce of all gradients' bytes, in messages of at most BUCKET_BYTES or one
    parameter. Those whose gradients are complete travel while the rest is computed.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        group: dist.ProcessGroup | None,
        uses: Mapping[str, int] | None = None,
    ) -> None:
        """Make the buffers. For a mean over `group`, divide what the gradients are of: that costs no pass over them.

        `uses` names parameters that get more than one gradient a microbatch.
        """
        self._uses = dict(uses or {})
        self._group = group
        self._parameters = dict(parameters)
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[str, _Bucket] = {}
        self._came: set[str] = set()
        self._core_idle = False
        self._cleared_s = time.perf_counter(), time.thread_time()
        self._moving_s = 0.0  # CPU time that this thread has spent on messages since
        chosen: list[str] = []
        for name in reversed(self._parameters):
            size = sum(self._parameters[each].nbytes for each in chosen)
            if chosen and size + self._parameters[name].nbytes > BUCKET_BYTES:
                self._make(chosen)
                chosen = []
            chosen.append(name)
        if chosen:
            self._make(chosen)
        for name, parameter in self._parameters.items():
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, name=name: self.came(name)
            )

    def _make(self, names: list[str]) -> None:
        tensors = [self._parameters[name] for name in names]
        flat = tensors[0].new_zeros(sum(tensor.numel() for tensor in tensors))
        bucket = _Bucket(flat, sum(self._uses.get(name, 1) for name in names))
        self._buckets.append(bucket)
        for name, tensor, part in zip(
            names, tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.grad = part.view_as(tensor)
            self._bucket_of[name] = bucket

    def clear(self, times: int) -> None:
        """Set all gradients to zero and expect each to be added to so many times, once a microbatch."""
        self._came.clear()
        self._cleared_s, self._moving_s = (time.perf_counter(), time.thread_time()), 0.0
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.waiting, bucket.work = bucket.size * times, None

    def came(self, name: str) -> None:
        """Note that a gradient was added to; when a bucket has them all it starts to travel."""
        self._came.add(name)
        if self._group is None:
            return
        self._bucket_of[name].waiting -= 1
        began_s = time.thread_time()
        self._move()
        self._moving_s += time.thread_time() - began_s

    def _move(self) -> None:
        # In order, since all ranks must start their all-reduces alike; asking those under way moves MPI on.
        for each in self._buckets:
            if each.work is not None:
                if not self._core_idle:
                    each.work.is_completed()
            elif each.waiting > 0:
                break
            else:
                self._start(each)

    def reduce(self) -> None:
        """Wait until every gradient is the sum."""
        wall_s, cpu_s = time.perf_counter() - self._cleared_s[0], time.thread_time() - self._cleared_s[1]
        self._core_idle = cpu_s - self._moving_s < (1 - IDLE_SHARE) * (wall_s - self._moving_s)
        for bucket in self._buckets:
            if bucket.work is None and self._group is not None:
                self._start(bucket)
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()

    def missing(self) -> list[str]:
        """Return the parameters that got no gradient since the last `clear`."""
        return [name for name in self._parameters if name not in self._came]

    def _start(self, bucket: _Bucket) -> None:
        bucket.work = dist.all_reduce(bucket.flat, group=self._group, async_op=True)
        if self._core_idle:  # as the last step was; on a busy core the thread would cost more than it hides
            bucket.work.get_future()  # whoever promises one moves MPI on while backward is elsewhere
