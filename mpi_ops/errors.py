"""What can go wrong in communication; each class says how the program should end."""

from __future__ import annotations


class MpiOpsError(Exception):
    """The family: one sentence that says what was asked, what it held and what is allowed."""

    exit_code = 1


class LayoutError(MpiOpsError, ValueError):
    """Degrees of parallelism that are no layout, or no layout of this world."""

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
