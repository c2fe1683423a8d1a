"""Runs a pipeline schedule on the stages that one rank holds; who sends what to whom follows from the schedule.

Every rank knows every rank's list of actions, so a receiver knows in which order a sender's messages leave, and
posts its receives in that order, on CPUs a few ahead. That needs no tags that a backend could ignore, and as all sends
are asynchronous nothing can block for ever that the schedule's own dependencies do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  (the field's own name for it)
from torch import Tensor

from mpi_ops.schedule import Action

LOOKAHEAD = {"cpu": 2}
"""Receives posted from each rank before they are needed. On a GPU none: a posted receive runs there until the message
comes, and whatever needs an idle GPU (a kernel's first use, new memory) waits for it, and so would what the sender
waits for."""

Stage = Callable[[Tensor | None, int], Tensor]
"""(input, or None for the first stage; microbatch) -> activations, or the loss for the last stage."""
Message = tuple[str, int, int]
"""("x" activations for | "g" gradients for, stage, microbatch)."""


class WeightGradients:
    """Gradients of weights put off to a later action: the W half of a split backward pass (zero-bubble, 2401.10241)."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + b; backward gives the gradient of x at once and keeps that of the weight for later."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # In a list, autograd does not see the weight: it would run its hooks for a gradient that is not there yet.
        made: Tensor = _PutOff.apply(x, [weight], self._due)  # type: ignore[no-untyped-call]
        return made if bias is None else made + bias.to(made.dtype)

    def take(self) -> list[Callable[[], None]]:
        """Return what has been put off since the last call; calling each adds one gradient to its weight."""
        due, self._due[:] = list(self._due), []
        return due


class _PutOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, held: list[Tensor], due: list[Callable[[], None]]) -> Tensor:
        [weight] = held
        ctx.save_for_backward(x)
        ctx.weight, ctx.due = weight, due
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,), weight, gradient = ctx.saved_tensors, ctx.weight, gradients[0]

        def add() -> None:
            with torch.no_grad():
                part = gradient.flatten(0, -2).T @ x.flatten(0, -2)
                weight.grad = part.to(weight.dtype) if weight.grad is None else weight.grad.add_(part)
                for hook in getattr(weight, "_post_accumulate_grad_hooks", None) or ():
                    weight._post_accumulate_grad_hooks[hook](weight)

        ctx.due.append(add)
        return gradient @ weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None, None, None


@dataclass(slots=True)
class Pipeline:
    """One rank's part in a pipeline. `schedule` and `placement` are those of all ranks.

    Cost of one run: for each microbatch one message of activations over each boundary between ranks forward, one
    of gradients backward, of the bytes of `shape`.
    """

    stages: Mapping[int, Stage]
    schedule: Sequence[Sequence[Action]]
    placement: Sequence[Sequence[int]]
    rank: int
    """This one's place in the pipeline."""
    links: Mapping[tuple[int, int], dist.ProcessGroup]
    """(sender, receiver) -> the group of these two for what goes this way."""
    shape: tuple[int, ...]
    """Of the activations that travel."""
    dtype: torch.dtype
    device: torch.device
    scale: float = 1.0
    """Of the gradient of each microbatch's loss: its share of the batch."""
    put_off: WeightGradients | None = None
    """Where the stages' linear layers leave the gradients that a W action adds."""
    losses: dict[int, Tensor] = field(default_factory=dict)
    """Loss of each microbatch, on the rank that holds the last stage."""
    _ready: dict[Message, Tensor] = field(default_factory=dict)
    _open: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = field(default_factory=dict)
    _weights: dict[tuple[int, int], list[Callable[[], None]]] = field(default_factory=dict)
    _sent: deque[tuple[Any, Tensor]] = field(default_factory=deque)
    _arrivals: dict[int, deque[Message]] = field(default_factory=dict)
    _posted: dict[int, deque[tuple[Message, Any, Tensor]]] = field(default_factory=dict)
    _owner: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._owner = {stage: rank for rank, held in enumerate(self.placement) for stage in held}

    @property
    def last(self) -> int:
        """Number of the last stage."""
        return len(self._owner) - 1

    def run(self) -> dict[int, Tensor]:
        """Carry out this rank's actions and return the losses of the microbatches, where the last stage is here."""
        here = self.rank
        self.losses = {}
        self._arrivals = {rank: deque(self._messages(rank, here)) for rank in range(len(self.schedule))}
        self._posted = {rank: deque() for rank in self._arrivals}
        for rank in self._arrivals:
            self._post(rank, LOOKAHEAD.get(self.device.type, 0))
        for action in self.schedule[here]:
            {"F": self._forward, "B": self._backward, "I": self._backward, "W": self._weight}[action.kind](
                action
            )
            self._let_go()
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()
        return self.losses

    def _forward(self, action: Action) -> None:
        key = action.stage, action.microbatch
        x = None if action.stage == 0 else self._take("x", *key).requires_grad_(torch.is_grad_enabled())
        y = self.stages[action.stage](x, action.microbatch)
        if torch.is_grad_enabled():
            self._open[key] = x, y
        if action.stage == self.last:
            self.losses[action.microbatch] = y.detach()
        else:
            self._give("x", action.stage + 1, action.microbatch, y.detach())

    def _backward(self, action: Action) -> None:
        key = action.stage, action.microbatch
        x, y = self._open.pop(key)
        gradient = torch.full_like(y, self.scale) if action.stage == self.last else self._take("g", *key)
        torch.autograd.backward(y, gradient)
        if x is not None and x.grad is not None:
            self._give("g", action.stage - 1, action.microbatch, x.grad)
        if self.put_off is not None:
            self._weights[key] = self.put_off.take()
            if action.kind == "B":
                self._weight(action)

    def _weight(self, action: Action) -> None:
        for add in self._weights.pop((action.stage, action.microbatch)):
            add()

    def _give(self, kind: str, stage: int, microbatch: int, tensor: Tensor) -> None:
        """Hand a tensor to the rank that holds `stage`."""
        to = self._owner[stage]
        if to == self.rank:
            self._ready[kind, stage, microbatch] = tensor
        else:
            tensor = tensor.contiguous()
            work = dist.isend(tensor, group=self.links[self.rank, to], group_dst=int(to > self.rank))
            self._sent.append((work, tensor))

    def _take(self, kind: str, stage: int, microbatch: int) -> Tensor:
        """Return what was sent for `stage`, waiting for it; what arrives before it is put aside."""
        wanted = kind, stage, microbatch
        sender = self._owner[stage - 1 if kind == "x" else stage + 1]
        while wanted not in self._ready:
            self._post(sender, 1)
            message, work, tensor = self._posted[sender].popleft()
            self._post(sender, LOOKAHEAD.get(self.device.type, 0))
            work.wait()
            self._ready[message] = tensor
        return self._ready.pop(wanted)

    def _post(self, sender: int, number: int) -> None:
        """Have so many receives posted from a rank, while any are to come."""
        arrivals, posted = self._arrivals[sender], self._posted[sender]
        while arrivals and len(posted) < number:
            tensor = torch.empty(self.shape, dtype=self.dtype, device=self.device)
            work = dist.irecv(tensor, group=self.links[sender, self.rank], group_src=int(sender > self.rank))
            posted.append((arrivals.popleft(), work, tensor))

    def _let_go(self) -> None:
        """Forget sends that are done; asking also lets MPI move those that are not."""
        while self._sent and self._sent[0][0].is_completed():
            self._sent.popleft()

    def _messages(self, sender: int, receiver: int) -> list[Message]:
        """Return what `sender` sends to `receiver`, in the order in which it does."""
        found: list[Message] = []
        for action in self.schedule[sender]:
            if action.kind == "F" and action.stage < self.last:
                found.append(("x", action.stage + 1, action.microbatch))
            elif action.kind in "BI" and action.stage > 0:
                found.append(("g", action.stage - 1, action.microbatch))
        return [message for message in found if self._owner[message[1]] == receiver != sender]
