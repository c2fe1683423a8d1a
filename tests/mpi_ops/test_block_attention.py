"""Attention to one block is softmax(q k^T / sqrt(E)) v, with its gradients, by every kernel that computes it."""

from __future__ import annotations

import pytest
import torch

from mpi_ops.block_attention import attend, by_products, gradients, gradients_by_products

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
BATCH, HEADS, QUERIES, KEYS = 2, 3, 48, 80


def errors(device: str, dtype: torch.dtype, width: int, causal: bool, forward, backward) -> dict[str, float]:
    """Return how far each result is off, as a share of its largest element; fp64 by autograd is right."""
    generator = torch.Generator().manual_seed(width)
    keys = QUERIES if causal else KEYS
    drawn = [torch.randn(BATCH, HEADS, n, width, generator=generator) for n in (QUERIES, QUERIES, keys, keys)]
    grad, q, k, v = (each.to(device, dtype) for each in drawn)
    leaves = [each.double().requires_grad_() for each in (q, k, v)]
    scores = leaves[0] @ leaves[1].mT / width**0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    wanted = [scores.softmax(-1) @ leaves[2], scores.logsumexp(-1)]
    wanted += torch.autograd.grad(wanted[0], leaves, grad.double())
    out, log_sum = forward(q, k, v, causal)
    found = [out, log_sum, *backward(grad, q, k, v, out, log_sum, causal)]
    return {
        name: ((got - want).abs().max() / want.abs().max()).item()
        for name, got, want in zip(("out", "sum", "dq", "dk", "dv"), found, wanted, strict=True)
    }


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_both_ways_on_a_cpu(dtype, causal):
    for functions in ((attend, gradients), (by_products, gradients_by_products)):
        off = errors("cpu", dtype, 8, causal, *functions)
        assert max(off.values()) <= BOUNDS[dtype], off


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # the first backward pass of a process
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_on_a_gpu(gpus, dtype, causal):
    for width in (4, 8, 64, 128):
        off = errors("cuda", dtype, width, causal, attend, gradients)
        assert max(off.values()) <= BOUNDS[dtype], (width, off)
