"""Attention of some queries to one block of keys, with the log of each query's sum, so that blocks can be merged.

Torch's fused kernels know that sum but its public function does not return it, so they are called by their own names:
on CPUs one for every dtype, on GPUs the one for 16 bits. Others are computed by matrix products.

Shape suffixes: B batch, H heads, L queries, K keys, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Against matmul, softmax and matmul in one thread, the CPU's kernels took 0.2 to 0.9 of the time in fp64 and fp32 (64
# to 1,024 positions), and agreed to 3e-15.
_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_gpu_forward = torch.ops.aten._scaled_dot_product_flash_attention
_gpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward


def attend(q_BHLE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Return softmax(q k^T / sqrt(E)) v, (B, H, L, E), and log sum exp(q k^T / sqrt(E)), (B, H, L).

    With `causal`, queries and keys stand at the same positions, and a query sees none after its own.
    """
    if not q_BHLE.is_cuda:
        out_BHLE, sum_BHL = _cpu_forward(q_BHLE, k_BHKE, v_BHKE, 0.0, causal)
    elif _has_gpu_kernel(q_BHLE):
        out_BHLE, sum_BHL, *_ = _gpu_forward(q_BHLE, k_BHKE, v_BHKE, 0.0, causal)
    else:
        out_BHLE, sum_BHL = by_products(q_BHLE, k_BHKE, v_BHKE, causal)
    return out_BHLE, sum_BHL


def gradients(
    grad_BHLE: Tensor,
    q_BHLE: Tensor,
    k_BHKE: Tensor,
    v_BHKE: Tensor,
    out_BHLE: Tensor,
    sum_BHL: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return this block's share of the gradients of q, k and v.

    Outputs and sums are those over all blocks, which makes the shares add up.
    """
    saved = grad_BHLE, q_BHLE, k_BHKE, v_BHKE, out_BHLE
    if not q_BHLE.is_cuda:
        dq_BHLE, dk_BHKE, dv_BHKE = _cpu_backward(*saved, sum_BHL, 0.0, causal)
    elif _has_gpu_kernel(q_BHLE):
        dense = None, None, q_BHLE.shape[2], k_BHKE.shape[2]  # no table of lengths: all sequences are whole
        undropped = 2 * (torch.zeros((), dtype=torch.int64, device=q_BHLE.device),)
        log_sum_BHL = sum_BHL.contiguous()
        dq_BHLE, dk_BHKE, dv_BHKE = _gpu_backward(*saved, log_sum_BHL, *dense, 0.0, causal, *undropped)
    else:
        dq_BHLE, dk_BHKE, dv_BHKE = gradients_by_products(*saved, sum_BHL, causal)
    return dq_BHLE, dk_BHKE, dv_BHKE


def by_products(q_BHLE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Return what `attend` does, by two matrix products, in fp32 at least."""
    scores_BHLK = _scores(q_BHLE, k_BHKE, causal)
    sum_BHL = scores_BHLK.logsumexp(-1)
    out_BHLE = (scores_BHLK - sum_BHL.unsqueeze(-1)).exp() @ v_BHKE.to(sum_BHL.dtype)
    return out_BHLE.to(q_BHLE.dtype), sum_BHL


def gradients_by_products(
    grad_BHLE: Tensor,
    q_BHLE: Tensor,
    k_BHKE: Tensor,
    v_BHKE: Tensor,
    out_BHLE: Tensor,
    sum_BHL: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `gradients` does: with p = exp(s - sum), that of the scores s is p (grad v^T - sum_E(grad out))."""
    narrow = q_BHLE.dtype
    grad, q, k, v, out = (each.to(sum_BHL.dtype) for each in (grad_BHLE, q_BHLE, k_BHKE, v_BHKE, out_BHLE))
    p_BHLK = (_scores(q_BHLE, k_BHKE, causal) - sum_BHL.unsqueeze(-1)).exp()
    ds_BHLK = p_BHLK * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return (ds_BHLK @ k).to(narrow), (ds_BHLK.mT @ q).to(narrow), (p_BHLK.mT @ grad).to(narrow)


def _scores(q_BHLE: Tensor, k_BHKE: Tensor, causal: bool) -> Tensor:
    wide = torch.promote_types(q_BHLE.dtype, torch.float32)
    scores_BHLK: Tensor = q_BHLE.to(wide) @ k_BHKE.to(wide).mT * q_BHLE.shape[-1] ** -0.5
    if causal:
        future_LK = torch.ones(scores_BHLK.shape[-2:], dtype=torch.bool, device=q_BHLE.device).triu(1)
        scores_BHLK = scores_BHLK.masked_fill(future_LK, float("-inf"))
    return scores_BHLK


def _has_gpu_kernel(q_BHLE: Tensor) -> bool:
    """Whether the GPU's fused kernel takes it: 16 bits, and heads of a multiple of 8 up to 256."""
    width = q_BHLE.shape[-1]
    return q_BHLE.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256
