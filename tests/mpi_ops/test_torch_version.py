"""The backend is for one minor version of torch and says so on any other."""

from __future__ import annotations

import pytest
import torch

from mpi_ops.errors import BackendError
from mpi_ops.torch_version import check_torch


@pytest.mark.parametrize("installed", ["2.12.1", "2.14.0+cpu", "2.130.0", "3.13.0"])
def test_another_minor_version_is_refused_in_one_sentence(monkeypatch, installed):
    monkeypatch.setattr(torch, "__version__", installed)
    with pytest.raises(BackendError) as raised:
        check_torch()
    assert str(raised.value) == (
        f"torch {installed} is installed; the mpi4py backend is written for 2.13.x only"
    )
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("installed", ["2.13.0+cpu", "2.13.1"])
def test_any_patch_of_its_own_is_taken(monkeypatch, installed):
    monkeypatch.setattr(torch, "__version__", installed)
    check_torch()
