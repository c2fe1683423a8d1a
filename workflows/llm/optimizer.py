"""AdamW on named tensors, its learning rate, the clipping of gradients, and its state as named arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from workflows.llm.config import OptimizerConfig


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) on torch's fused kernel: matrices decay, norms do not.

    `torch.optim` is not used, since making one of its optimizers imports torch's compiler, which costs every
    rank of every run more than a second.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: OptimizerConfig) -> None:
        self._config = config
        self._parameters = dict(parameters)
        self.moments = {
            name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self._parameters.items()
        }
        device = next((p.device for p in self._parameters.values()), None)
        self.count = torch.zeros((), dtype=torch.float32, device=device)

    @torch.no_grad()
    def step(self, lr: float, gradients: Mapping[str, Tensor]) -> None:
        """Update every parameter from its gradient."""
        chosen = self._config
        self.count += 1
        for decay, is_matrix in ((chosen.weight_decay, True), (0.0, False)):
            names = [name for name, p in self._parameters.items() if (p.ndim > 1) is is_matrix]
            torch._fused_adamw_(
                [self._parameters[name] for name in names],
                [gradients[name] for name in names],
                [self.moments[name][0] for name in names],
                [self.moments[name][1] for name in names],
                [],
                [self.count] * len(names),
                lr=lr,
                beta1=chosen.beta1,
                beta2=chosen.beta2,
                weight_decay=decay,
                eps=chosen.eps,
                amsgrad=False,
                maximize=False,
            )


def learning_rate(step: int, n_steps: int, peak: float, config: OptimizerConfig) -> float:
    """Return the learning rate of step 0 .. n_steps - 1; the last step has peak * min_lr_ratio.

    Warm-up is linear and reaches the peak after ceil(warmup_fraction * n_steps) steps. A run that is all
    warm-up, such as one of a single step, ends at its peak.
    """
    warmup = math.ceil(config.warmup_fraction * n_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    decay = n_steps - warmup if config.schedule == "cosine" else math.ceil(config.decay_fraction * n_steps)
    done = max(0, step + 1 - (n_steps - decay)) / max(1, decay)
    shape = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return peak * (config.min_lr_ratio + (1 - config.min_lr_ratio) * shape)


def clip(gradients: Iterable[Tensor], norm: float, largest: float) -> None:
    """Scale gradients, in place, whose global norm is `norm` to one of at most `largest`."""
    if norm > largest:
        torch._foreach_mul_(list(gradients), largest / (norm + 1e-6))


def state(parameters: Mapping[str, Tensor], optimizer: AdamW) -> dict[str, Tensor]:
    """Return weights and both moments as `weight/NAME`, `moment1/NAME`, `moment2/NAME`: the memory itself."""
    tensors = {}
    for name, parameter in parameters.items():
        first, second = optimizer.moments[name]
        for kind, tensor in (("weight", parameter), ("moment1", first), ("moment2", second)):
            tensors[f"{kind}/{name}"] = tensor.detach()
    return tensors
