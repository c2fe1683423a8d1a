"""The "mpi4py" backend of torch.distributed: its operations.

Every operation is started with MPI's nonblocking call and handed back as a Work; torch.distributed waits for it
at once where the caller asked for a synchronous operation. So one rank may wait where another overlaps, waiting
has a time limit and gives way to signals, and it is as fast as MPI's blocking calls. What is asked of the caller
is what MPI asks: the ranks of a group start its collectives in the same order.

In the cost lines P is the group's size, n a tensor's bytes, a the latency of a message and b the time of a byte.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor
from torch._C._distributed_c10d import _DistributedBackendOptions

from mpi_ops.errors import BackendError, OperationError, TensorError, reason
from mpi_ops.group import Group, own_communicator
from mpi_ops.wire import joined, overlap, raw, read, reduction, same_dtype, spread, written
from mpi_ops.work import NO_TIMEOUT, Posted, Work

SWEEP_AT = 64
"""Works under way at which those that nobody waits for are looked after."""


ALL_REDUCE, BROADCAST, REDUCE_SCATTER = (
    dist.AllreduceOptions(),
    dist.BroadcastOptions(),
    dist.ReduceScatterOptions(),
)

Given = ParamSpec("Given")
Item = TypeVar("Item")


def operation(
    name: str, collective: bool = True
) -> Callable[[Callable[Concatenate[Any, Given], Posted]], Callable[Concatenate[Any, Given], Work]]:
    """Make a method that posts an operation into one that returns its Work: timed, counted, named in errors."""

    def decorate(post: Callable[Concatenate[Any, Given], Posted]) -> Callable[Concatenate[Any, Given], Work]:
        @functools.wraps(post)
        def start(self: MpiProcessGroup, *args: Given.args, **kwargs: Given.kwargs) -> Work:
            began_s = time.perf_counter()
            self.sequence += collective
            try:
                posted = post(self, *args, **kwargs)
            except TensorError as error:
                raise TensorError(f"{name} on {self}: {error}") from None
            except (MPI.Exception, OverflowError) as error:
                raise OperationError(f"{name} on {self}: {reason(error)}") from error
            tally = self.tally(name)
            options = kwargs.get("opts", args[-1] if args else None)
            limit = getattr(options, "timeout", NO_TIMEOUT)
            limit_s = limit.total_seconds() if limit > NO_TIMEOUT else self.timeout_s
            work = Work(self, name, self.sequence if collective else 0, posted, tally, limit_s)
            tally.calls += 1
            tally.sent_bytes += posted.sent_bytes
            tally.seconds += time.perf_counter() - began_s
            if len(self.pending) > SWEEP_AT and not tally.calls % SWEEP_AT:
                for each in tuple(self.pending):
                    each.is_completed()
            return work

        return start  # type: ignore[return-value]  # mypy sees functools.wraps keep `Any` as `self`

    return decorate


class MpiProcessGroup(Group):
    """The operations, under the names and signatures that torch 2.13 calls; each returns a Work.

    Raises, all of them:
        TensorError: a tensor is not on the CPU, not contiguous where it is written, or of a wrong size or dtype.
        OperationError: MPI refused.
    """

    sequence = 0
    """Collectives started so far; equal on all ranks of a sound program."""

    @operation("all_reduce")
    def allreduce(self, tensors: list[Tensor], opts: dist.AllreduceOptions = ALL_REDUCE) -> Posted:
        """Replace the tensor by its reduction over the ranks.

        Cost: 2 n b (P-1)/P + 2 a log P for large n; bf16 and fp16 travel as fp32, twice the bytes.
        """
        return self._all_reduce(one(tensors), opts.reduceOp)

    @operation("all_reduce_coalesced")
    def allreduce_coalesced(self, tensors: list[Tensor], opts: dist.AllreduceOptions = ALL_REDUCE) -> Posted:
        """Replace each tensor by its reduction over the ranks.

        Cost: as many all-reduces, under way together.
        """
        return together([self._all_reduce(tensor, opts.reduceOp) for tensor in tensors])

    def _all_reduce(self, tensor: Tensor, reduce_op: dist.ReduceOp) -> Posted:
        plan = reduction(tensor.dtype, reduce_op)
        wire = plan.widen(written(tensor), reduce_op)
        request = self.comm.Iallreduce(MPI.IN_PLACE, plan.spec(wire), plan.op)
        finish = plan.rounding(wire, tensor, self.comm.size)
        return Posted([request], [tensor], tensor.nbytes, [wire], finish)

    @operation("reduce")
    def reduce(self, tensors: list[Tensor], opts: dist.ReduceOptions) -> Posted:
        """Replace the root's tensor by the reduction over the ranks; the others' stay as they are.

        Cost: n b + a log P.
        """
        tensor, root = one(tensors), opts.rootRank
        plan = reduction(tensor.dtype, opts.reduceOp)
        if self.comm.rank != root:
            wire = plan.widen(read(tensor), opts.reduceOp)
            request = self.comm.Ireduce(plan.spec(wire), None, plan.op, root)
            return Posted([request], [tensor], tensor.nbytes, [wire])
        wire = plan.widen(written(tensor), opts.reduceOp)
        request = self.comm.Ireduce(MPI.IN_PLACE, plan.spec(wire), plan.op, root)
        finish = plan.rounding(wire, tensor, self.comm.size)
        return Posted([request], [tensor], tensor.nbytes, [wire], finish)

    @operation("broadcast")
    def broadcast(self, tensors: list[Tensor], opts: dist.BroadcastOptions = BROADCAST) -> Posted:
        """Replace the tensor by the root's.

        Cost: n b + a log P; the root sends.
        """
        tensor, root = one(tensors), opts.rootRank
        request = self.comm.Ibcast(raw(written(tensor)), root)
        return Posted([request], [tensor], tensor.nbytes if self.comm.rank == root else 0)

    @operation("all_gather")
    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Posted:
        """Fill the list of outputs with the ranks' inputs, which may be of several sizes.

        Cost: (P-1) n b + a log P, and a copy of the outputs.
        """
        return self._all_gather(one(outputs), one(inputs))

    @operation("all_gather_coalesced")
    def allgather_coalesced(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Posted:
        """Fill `outputs[i]` with the ranks' `inputs[i]`.

        Cost: as many all-gathers, under way together.
        """
        pairs = zip(outputs, inputs, strict=True)
        return together([self._all_gather(output, each) for output, each in pairs])

    def _all_gather(self, outputs: list[Tensor], tensor: Tensor) -> Posted:
        source, flat, counts = read(tensor), *self._staging(outputs, tensor)
        request = self.comm.Iallgatherv(raw(source), [raw(flat), counts, MPI.BYTE])
        return Posted([request], outputs, source.nbytes, [source, flat], lambda: spread(flat, outputs))

    @operation("all_gather_single")
    def all_gather_single(self, output: Tensor, tensor: Tensor, opts: Any = None) -> Posted:
        """Fill the output with the ranks' inputs one after another; the input may be its own part of the output.

        Cost: (P-1) n b + a log P, with n the input's bytes.
        """
        return self._all_gather_single(output, tensor)

    @operation("all_gather_single_coalesced")
    def all_gather_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> Posted:
        """Fill each output with the ranks' inputs one after another.

        Cost: as many all-gathers, under way together.
        """
        pairs = zip(outputs, inputs, strict=True)
        return together([self._all_gather_single(output, each) for output, each in pairs])

    def _all_gather_single(self, output: Tensor, tensor: Tensor) -> Posted:
        same_dtype(written(output), tensor)
        source = read(tensor)
        self._check_shares(output, source)
        send: Any
        if source.data_ptr() == output.data_ptr() + self.comm.rank * source.nbytes:
            send = MPI.IN_PLACE  # FSDP2 gathers in place
        else:
            source = source.clone() if overlap(source, output) else source
            send = raw(source)
        request = self.comm.Iallgather(send, raw(output))
        return Posted([request], [output], source.nbytes, [source])

    @operation("gather")
    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: dist.GatherOptions) -> Posted:
        """Fill the root's list of outputs with the ranks' inputs.

        Cost: n b for a rank, P n b for the root, a log P.
        """
        source = read(one(inputs))
        if self.comm.rank != opts.rootRank:
            request = self.comm.Igatherv(raw(source), None, opts.rootRank)
            return Posted([request], [], source.nbytes, [source])
        wanted = one(outputs)
        flat, counts = self._staging(wanted, source)
        request = self.comm.Igatherv(raw(source), [raw(flat), counts, MPI.BYTE], opts.rootRank)
        return Posted([request], wanted, source.nbytes, [source, flat], lambda: spread(flat, wanted))

    @operation("scatter")
    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: dist.ScatterOptions) -> Posted:
        """Fill each rank's output with its part of the root's list.

        Cost: n b for a rank, P n b for the root, a log P.
        """
        output = written(one(outputs))
        if self.comm.rank != opts.rootRank:
            request = self.comm.Iscatterv(None, raw(output), opts.rootRank)
            return Posted([request], [output])
        parts = one(inputs)
        same_dtype(output, *parts)
        self._check_count(parts)
        flat = joined(parts)
        counts = [part.nbytes for part in parts]
        request = self.comm.Iscatterv([raw(flat), counts, MPI.BYTE], raw(output), opts.rootRank)
        return Posted([request], [output], flat.nbytes, [flat])

    @operation("reduce_scatter")
    def reduce_scatter(
        self,
        outputs: list[Tensor],
        inputs: list[list[Tensor]],
        opts: dist.ReduceScatterOptions = REDUCE_SCATTER,
    ) -> Posted:
        """Fill each rank's output with the reduction of its part of the ranks' lists.

        Cost: n b (P-1)/P + a log P with n the bytes of all parts, and a copy of them.
        """
        output, parts = one(outputs), one(inputs)
        same_dtype(written(output), *parts)
        self._check_count(parts)
        plan = reduction(output.dtype, opts.reduceOp)
        flat = joined(parts)
        source, wire = plan.widen(flat, opts.reduceOp), plan.room(output)
        counts = [part.numel() for part in parts]
        request = self.comm.Ireduce_scatter(plan.spec(source), plan.spec(wire), counts, plan.op)
        finish = plan.rounding(wire, output, self.comm.size)
        return Posted([request], [output], flat.nbytes, [source, wire], finish)

    @operation("reduce_scatter_single")
    def reduce_scatter_single(
        self, output: Tensor, tensor: Tensor, opts: dist.ReduceScatterOptions = REDUCE_SCATTER
    ) -> Posted:
        """Fill each rank's output with the reduction of its part of the ranks' inputs.

        Cost: n b (P-1)/P + a log P, with n the input's bytes; bf16 and fp16 travel as fp32.
        """
        return self._reduce_scatter(output, tensor, opts.reduceOp)

    @operation("reduce_scatter_single_coalesced")
    def reduce_scatter_single_coalesced(
        self,
        outputs: list[Tensor],
        inputs: list[Tensor],
        opts: dist.ReduceScatterOptions = REDUCE_SCATTER,
    ) -> Posted:
        """Fill each output with the reduction of its part of the ranks' inputs.

        Cost: as many reduce-scatters, under way together.
        """
        pairs = zip(outputs, inputs, strict=True)
        return together([self._reduce_scatter(output, each, opts.reduceOp) for output, each in pairs])

    def _reduce_scatter(self, output: Tensor, tensor: Tensor, reduce_op: dist.ReduceOp) -> Posted:
        same_dtype(written(output), tensor)
        self._check_shares(tensor, output)
        plan = reduction(output.dtype, reduce_op)
        source, wire = plan.widen(read(tensor), reduce_op), plan.room(output)
        if overlap(source, wire):
            source = source.clone()
        request = self.comm.Ireduce_scatter_block(plan.spec(source), plan.spec(wire), plan.op)
        finish = plan.rounding(wire, output, self.comm.size)
        return Posted([request], [output], tensor.nbytes, [source, wire], finish)

    @operation("all_to_all")
    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Posted:
        """Send `inputs[r]` to rank r and fill `outputs[r]` with what rank r sends; sizes may differ.

        Cost: (P-1)/P of the inputs' bytes times b, (P-1) a, and a copy of inputs and outputs.
        """
        self._check_count(inputs)
        self._check_count(outputs)
        same_dtype(*outputs, *inputs)
        source, sent = joined(inputs), [each.nbytes for each in inputs]
        flat, received = torch.empty_like(joined(outputs)), [each.nbytes for each in outputs]
        request = self.comm.Ialltoallv([raw(source), sent, MPI.BYTE], [raw(flat), received, MPI.BYTE])
        return Posted([request], outputs, source.nbytes, [source, flat], lambda: spread(flat, outputs))

    @operation("all_to_all_single")
    def all_to_all_single(
        self,
        output: Tensor,
        tensor: Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any = None,
    ) -> Posted:
        """Send rows of the input to each rank and fill the output with rows from each.

        The splits are rows to and from each rank; an empty list means equal shares.

        Cost: (P-1)/P n b + (P-1) a.
        """
        same_dtype(written(output), tensor)
        source = read(tensor)
        if overlap(source, output):
            source = source.clone()
        sent, received = self._row_bytes(source, input_splits), self._row_bytes(output, output_splits)
        request = self.comm.Ialltoallv([raw(source), sent, MPI.BYTE], [raw(output), received, MPI.BYTE])
        return Posted([request], [output], source.nbytes, [source])

    @operation("barrier")
    def barrier(self, opts: Any = None) -> Posted:
        """Be done when every rank has started it.

        Cost: a log P.
        """
        return Posted([self.comm.Ibarrier()], [])

    @operation("send", collective=False)
    def send(self, tensors: list[Tensor], rank: int, tag: int) -> Posted:
        """Send the tensor to `rank` of the group; the tensor is not to change before the Work is done.

        Cost: n b + a.
        """
        source = read(one(tensors))
        request = self.comm.Isend(raw(source), rank, tag)
        return Posted([request], [], source.nbytes, [source], peer=rank)

    @operation("recv", collective=False)
    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> Posted:
        """Fill the tensor with the next message of `rank` of the group under `tag`, which must be of its size.

        Cost: n b + a.
        """
        return self._recv(one(tensors), rank, tag)

    @operation("recv", collective=False)
    def recv_anysource(self, tensors: list[Tensor], tag: int) -> Posted:
        """Fill the tensor with the next message of any rank under `tag`; the Work's source_rank tells whose.

        Cost: n b + a.
        """
        return self._recv(one(tensors), MPI.ANY_SOURCE, tag)

    def _recv(self, tensor: Tensor, rank: int, tag: int) -> Posted:
        status = MPI.Status()

        def check_length() -> None:
            if (got := status.Get_count(MPI.BYTE)) != tensor.nbytes:
                raise OperationError(
                    f"{got} bytes came from rank {status.source}, the tensor holds {tensor.nbytes}"
                )

        request = self.comm.Irecv(raw(written(tensor)), rank, tag)
        return Posted([request], [tensor], finish=check_length, peer=rank, status=status)

    def _staging(self, outputs: list[Tensor], tensor: Tensor) -> tuple[Tensor, list[int]]:
        """Return a flat tensor to receive all outputs in, and the bytes of each."""
        same_dtype(tensor, *outputs)
        self._check_count(outputs)
        if outputs[self.comm.rank].numel() != tensor.numel():
            raise TensorError(
                f"the input has {tensor.numel()} elements, its place in the outputs "
                f"{outputs[self.comm.rank].numel()}"
            )
        flat = tensor.new_empty(sum(output.numel() for output in outputs))
        return flat, [output.nbytes for output in outputs]

    def _check_count(self, tensors: Sequence[Tensor]) -> None:
        if len(tensors) != self.comm.size:
            raise TensorError(f"a list of {len(tensors)} tensors; one for each of {self.comm.size} ranks")

    def _check_shares(self, whole: Tensor, share: Tensor) -> None:
        if whole.numel() != self.comm.size * share.numel():
            raise TensorError(
                f"{whole.numel()} elements for {self.comm.size} ranks with {share.numel()} each"
            )

    def _row_bytes(self, tensor: Tensor, splits: list[int]) -> list[int]:
        """Return the bytes of each rank's rows."""
        rows = tensor.shape[0] if tensor.dim() else 1
        shares = splits or [rows // self.comm.size] * self.comm.size
        if len(shares) != self.comm.size or sum(shares) != rows or min(shares) < 0:
            raise TensorError(
                f"{rows} rows in splits of {shares}: one for each of {self.comm.size} ranks, all rows"
            )
        return [share * (tensor.nbytes // max(rows, 1)) for share in shares]


def one(items: Sequence[Item]) -> Item:
    """Return the only item: torch's signatures allow several tensors, one for each device of a rank.

    Raises:
        TensorError: there are several, or none.
    """
    if len(items) != 1:
        raise TensorError(f"{len(items)} tensors or lists of them; a rank has one")
    return items[0]


def together(posts: Sequence[Posted]) -> Posted:
    """Return several operations as one that is done when all are."""
    return Posted(
        requests=[request for post in posts for request in post.requests],
        results=[result for post in posts for result in post.results],
        sent_bytes=sum(post.sent_bytes for post in posts),
        held=[post.held for post in posts],
        finish=lambda: [post.finish() for post in posts if post.finish],
    )


def create(options: _DistributedBackendOptions, comm: MPI.Intracomm | None) -> MpiProcessGroup:
    """Return the process group that torch asks for; `comm`, given as pg_options, is needed for the world's only.

    Raises:
        BackendError: no communicator, another rank in it than torch says, or an MPI without thread support.
    """
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise BackendError("the mpi4py backend needs MPI_THREAD_MULTIPLE; leave mpi4py.rc.thread_level alone")
    ranks = list(options.global_ranks_in_group)
    own = own_communicator(comm, ranks, options.group_id)
    if (own.rank, own.size) != (options.group_rank, options.group_size):
        raise BackendError(
            f"rank {own.rank} of {own.size} in MPI, but {options.group_rank} of {options.group_size} in torch"
        )
    return MpiProcessGroup(
        own,
        options.store,
        options.group_id,
        ranks or list(range(own.size)),
        options.timeout.total_seconds(),
    )


def register() -> None:
    """Make the backend known to torch.distributed, once."""
    if "mpi4py" not in dist.Backend.backend_list:
        dist.Backend.register_backend("mpi4py", create, extended_api=True, devices=["cpu"])
