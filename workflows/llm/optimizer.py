"""AdamW, its learning rate, the clipping of gradients, and its state as plain named arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from launch.errors import CheckpointError
from workflows.llm.config import OptimizerConfig


class MissingGradientError(Exception):
    """A trained parameter got no gradient: some part of the step is not connected or was lost."""

    exit_code = 1


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
        self.steps = {name: torch.zeros((), dtype=torch.float32) for name in self._parameters}

    @torch.no_grad()
    def step(self, lr: float, gradients: Mapping[str, Tensor]) -> None:
        """Update every parameter from its gradient."""
        chosen = self._config
        for decay, is_matrix in ((chosen.weight_decay, True), (0.0, False)):
            names = [name for name, p in self._parameters.items() if (p.ndim > 1) is is_matrix]
            torch._foreach_add_([self.steps[name] for name in names], 1)
            torch._fused_adamw_(
                [self._parameters[name] for name in names],
                [gradients[name] for name in names],
                [self.moments[name][0] for name in names],
                [self.moments[name][1] for name in names],
                [],
                [self.steps[name] for name in names],
                lr=lr,
                beta1=chosen.beta1,
                beta2=chosen.beta2,
                weight_decay=decay,
                eps=chosen.eps,
                amsgrad=False,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Forget all gradients, so that one that does not come back is noticed."""
        for parameter in self._parameters.values():
            parameter.grad = None


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


def gradients(model: nn.Module) -> list[Tensor]:
    """Return the gradient of every trained parameter, in the model's order.

    Raises:
        MissingGradientError: one of them is None; the sentence names the parameter.
    """
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        raise MissingGradientError(f"no gradient for {', '.join(missing)}")
    return [p.grad for p in model.parameters() if p.grad is not None]


def clip(gradients: list[Tensor], largest: float) -> float:
    """Scale the gradients, in place, to a global norm of at most `largest`; return the norm before."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
    return norm.item()


def state_arrays(model: nn.Module, optimizer: AdamW) -> dict[str, np.ndarray]:
    """Return weights, both moments and step counts as `weight/NAME`, `moment1/NAME`, ...: views, not copies."""
    arrays = {}
    for name, parameter in model.named_parameters():
        arrays[f"weight/{name}"] = parameter.detach().numpy()
        arrays[f"moment1/{name}"], arrays[f"moment2/{name}"] = (m.numpy() for m in optimizer.moments[name])
        arrays[f"step/{name}"] = optimizer.steps[name].numpy()
    return arrays


@torch.no_grad()
def load_state_arrays(model: nn.Module, optimizer: AdamW, arrays: Mapping[str, np.ndarray]) -> None:
    """Take weights, moments and step counts back, bit by bit.

    Raises:
        CheckpointError: an array is missing, or of another shape or type than this model's.
    """
    for name, parameter in model.named_parameters():
        held = (parameter, *optimizer.moments[name], optimizer.steps[name])
        for kind, tensor in zip(("weight", "moment1", "moment2", "step"), held, strict=True):
            key, wanted = f"{kind}/{name}", tensor.detach().numpy()
            array = arrays.get(key)
            if array is None:
                raise CheckpointError(f"the checkpoint holds no array '{key}'")
            if (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
                raise CheckpointError(
                    f"array '{key}' is {array.dtype}{list(array.shape)} in the checkpoint, "
                    f"{wanted.dtype}{list(wanted.shape)} in this model"
                )
            tensor.copy_(torch.tensor(array))
