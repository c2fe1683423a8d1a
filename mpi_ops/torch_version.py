"""The one minor version of torch that the backend is written for: names and semantics change between minors."""

from __future__ import annotations

import torch

from mpi_ops.errors import BackendError

MINOR = "2.13"


def check_torch() -> None:
    """Do nothing if the installed torch is of the minor version that the backend is written for.

    Raises:
        BackendError: it is of another.
    """
    installed = str(torch.__version__)
    if not installed.startswith(f"{MINOR}."):
        raise BackendError(
            f"torch {installed} is installed; the mpi4py backend is written for {MINOR}.x only"
        )
