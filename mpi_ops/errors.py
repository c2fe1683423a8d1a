"""What can go wrong in communication; each class says how the program should end."""

from __future__ import annotations


class MpiOpsError(Exception):
    """The family: one sentence that says what was asked, what it held and what is allowed."""

    exit_code = 1


class LayoutError(MpiOpsError, ValueError):
    """Degrees of parallelism that are no layout, or no layout of this world."""

    exit_code = 2


class ScheduleError(MpiOpsError, ValueError):
    """A pipeline schedule that cannot be made, is not complete or would wait for ever."""

    exit_code = 2


class BackendError(MpiOpsError, RuntimeError):
    """This torch or this MPI cannot carry the backend."""

    exit_code = 3


class TensorError(MpiOpsError, ValueError):
    """A tensor that the operation cannot take: its device, dtype, memory layout or size."""


class OperationError(MpiOpsError, RuntimeError):
    """MPI could not carry out an operation."""


class OperationTimeoutError(OperationError, TimeoutError):
    """An operation did not end in time; the sentence names who was not there."""


def reason(error: Exception) -> str:
    """Return MPI's error in one line: MPICH gives its class, a stack of C functions, and the cause in the last."""
    kind, *stack = str(error).splitlines() or [repr(error)]
    if kind.startswith("Message truncated"):  # MPICH 5.0 swaps the two sizes in its stack
        return "Message truncated: it is longer than the tensor that was to receive it"
    if not stack:
        return kind
    return f"{kind.removesuffix(', error stack:')}: {stack[-1].partition(': ')[2] or stack[-1]}"
