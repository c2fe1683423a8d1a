"""Tensors as MPI sees them: flat memory for what is moved, a type and an operation for what is reduced.

What is only moved goes as bytes, whatever its dtype. What is reduced needs a type that MPI can add up: bf16 and
fp16 have none worth using (bf16 none at all, fp16 one that is slow and rounds at every addition), so they are
widened to fp32, reduced, and rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor

from mpi_ops.errors import TensorError

Redop: Any = dist.ReduceOp.RedOpType  # its members are missing from torch's stubs

_FLOATS = {torch.float64: MPI.DOUBLE, torch.float32: MPI.FLOAT}
_NARROW = (torch.bfloat16, torch.float16)
_INTEGERS = {
    torch.int64: MPI.INT64_T,
    torch.int32: MPI.INT32_T,
    torch.int16: MPI.INT16_T,
    torch.int8: MPI.INT8_T,
    torch.uint64: MPI.UINT64_T,
    torch.uint32: MPI.UINT32_T,
    torch.uint16: MPI.UINT16_T,
    torch.uint8: MPI.UINT8_T,
}

_ARITHMETIC = {Redop.SUM: MPI.SUM, Redop.PRODUCT: MPI.PROD, Redop.MIN: MPI.MIN, Redop.MAX: MPI.MAX}
_SCALED = {Redop.AVG: MPI.SUM, Redop.PREMUL_SUM: MPI.SUM}
_BITWISE = {Redop.BAND: MPI.BAND, Redop.BOR: MPI.BOR, Redop.BXOR: MPI.BXOR}
_LOGICAL = {
    **dict.fromkeys((Redop.SUM, Redop.MAX, Redop.BOR), MPI.LOR),
    **dict.fromkeys((Redop.PRODUCT, Redop.MIN, Redop.BAND), MPI.LAND),
    Redop.BXOR: MPI.LXOR,
}


@dataclass(frozen=True, slots=True)
class Reduction:
    """How a dtype is reduced under a ReduceOp."""

    op: MPI.Op
    datatype: MPI.Datatype
    wire_dtype: torch.dtype
    redop: Any

    def spec(self, wire: Tensor) -> tuple[MPI.buffer, MPI.Datatype]:
        """Return the memory of `wire`, contiguous and of `wire_dtype`, as MPI reduces it."""
        return raw(wire), self.datatype

    def widen(self, tensor: Tensor, reduce_op: dist.ReduceOp) -> Tensor:
        """Return what goes into the reduction: `tensor` itself where nothing has to be done to it."""
        if self.redop is Redop.PREMUL_SUM:
            return tensor.detach().to(self.wire_dtype) * reduce_op.factor
        return tensor if tensor.dtype is self.wire_dtype else tensor.detach().to(self.wire_dtype)

    def room(self, output: Tensor) -> Tensor:
        """Return where MPI writes the reduction that becomes `output`: `output` itself where it can."""
        return output if output.dtype is self.wire_dtype else torch.empty_like(output, dtype=self.wire_dtype)

    def rounding(self, wire: Tensor, output: Tensor, world_size: int) -> Callable[[], object] | None:
        """Return what turns the reduced `wire` into `output`, or None where it already is."""
        if self.redop is Redop.AVG:
            return lambda: torch.div(wire, world_size, out=output)
        return None if wire is output else lambda: output.copy_(wire)


def _reductions() -> dict[tuple[torch.dtype, Redop], Reduction]:
    """Return every reduction there is."""
    table = {}
    for dtype in (*_FLOATS, *_NARROW):
        wire_dtype = torch.float32 if dtype in _NARROW else dtype
        for redop, op in (_ARITHMETIC | _SCALED).items():
            table[dtype, redop] = Reduction(op, _FLOATS[wire_dtype], wire_dtype, redop)
    for dtype, datatype in _INTEGERS.items():
        for redop, op in (_ARITHMETIC | _BITWISE).items():
            table[dtype, redop] = Reduction(op, datatype, dtype, redop)
    for redop, op in _LOGICAL.items():
        table[torch.bool, redop] = Reduction(op, MPI.C_BOOL, torch.bool, redop)
    return table


_TABLE = _reductions()


def reduction(dtype: torch.dtype, reduce_op: dist.ReduceOp) -> Reduction:
    """Return how `dtype` is reduced; bool as logic: sum, max and bor are `or`, product, min and band `and`.

    Raises:
        TensorError: not under this operation; the sentence names those that are.
    """
    redop = reduce_op.op  # type: ignore[attr-defined]
    try:
        return _TABLE[dtype, redop]
    except KeyError:
        allowed = ", ".join(each.name for of, each in _TABLE if of == dtype) or "none"
        raise TensorError(f"{redop.name} of {dtype}; reductions of this dtype: {allowed}") from None


def written(tensor: Tensor) -> Tensor:
    """Return `tensor`, which an operation writes into: contiguous memory of the host.

    Raises:
        TensorError: it is not.
    """
    if not tensor.is_cpu:
        raise TensorError(f"a tensor on {tensor.device}: the mpi4py backend moves CPU tensors only")
    if not tensor.is_contiguous():
        raise TensorError(
            f"a tensor of shape {tuple(tensor.shape)} and stride {tensor.stride()} is not contiguous and would "
            "be written as flat memory; pass tensor.contiguous() and copy the result back"
        )
    return tensor


def read(tensor: Tensor) -> Tensor:
    """Return `tensor`, which an operation only reads, or a contiguous copy of it.

    Raises:
        TensorError: it is not on the CPU.
    """
    return written(tensor.contiguous())


def raw(tensor: Tensor) -> MPI.buffer:
    """Return the memory of a contiguous tensor as bytes; it does not keep the tensor alive."""
    return MPI.buffer.fromaddress(tensor.data_ptr(), tensor.nbytes)


def overlap(a: Tensor, b: Tensor) -> bool:
    """Tell whether two contiguous tensors share memory, which MPI forbids of what is sent and received."""
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors' elements one after another in a new flat tensor.

    Raises:
        TensorError: one is not on the CPU, or they are of several dtypes.
    """
    same_dtype(*tensors)
    return torch.cat([read(tensor.detach()).reshape(-1) for tensor in tensors])


def spread(flat: Tensor, outputs: Sequence[Tensor]) -> None:
    """Copy a flat tensor's elements into `outputs`, one after another; they may be strided."""
    for output, part in zip(outputs, torch.split(flat, [each.numel() for each in outputs]), strict=True):
        output.copy_(part.view(output.shape))


def same_dtype(*tensors: Tensor) -> None:
    """Do nothing if the tensors are of one dtype.

    Raises:
        TensorError: they are of several.
    """
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        raise TensorError(f"tensors of several dtypes: {', '.join(sorted(map(str, dtypes)))}")
