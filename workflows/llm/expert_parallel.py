"""Expert parallelism laid over a model that knows nothing of it: who holds which experts, and how loaded they are.

Shape suffixes: Y layers of the whole model, X experts of the whole layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from analysis.store.schema import StreamSpec
from mpi_ops.mesh import Mesh
from workflows.llm.config import ModelConfig
from workflows.llm.model import Transformer
from workflows.llm.moe import MixtureOfExperts, shard_experts


class ExpertParallel:
    """The experts of this rank's layers. Over several ranks of `mesh.ep` each keeps its share of every layer's."""

    loads: Tensor
    """Tokens of the last step that chose each expert, over all ranks: known on every rank, (Y, X)."""
    dropped: Tensor
    """Pairs of a token and an expert of each layer in the last step that found no room, over all ranks, (Y,)."""

    def __init__(self, config: ModelConfig, stages: Iterable[Transformer], mesh: Mesh) -> None:
        self._config = config
        blocks = [block for stage in stages for block in stage.blocks.items()]
        self._layers: dict[str, MixtureOfExperts] = {
            layer: block.ffn for layer, block in blocks if isinstance(block.ffn, MixtureOfExperts)
        }
        if mesh.ep is not None:
            for layer in self._layers.values():
                shard_experts(layer, mesh.ep)
        self.names = {
            f"blocks.{layer}.ffn.experts.{name}"
            for layer, mixture in self._layers.items()
            for name, _ in mixture.experts.named_parameters()
        }
        """Of the parameters that are stacks of experts."""
        self.spread(self.take_loads())

    def biases(self) -> dict[str, Tensor]:
        """Return the memory of each layer's bias, by its name in the whole model: state that no gradient changes."""
        return {f"blocks.{layer}.ffn.bias": mixture.bias for layer, mixture in self._layers.items()}

    def take_loads(self) -> Tensor:
        """Return this rank's part of the loads since the last call, flat; the sum over all ranks is for `spread`."""
        here = torch.zeros(self._config.layers, self._config.experts + 1, dtype=torch.float64)
        for layer, mixture in self._layers.items():
            here[int(layer)] = mixture.take_loads().to(here.device)
        return here.flatten() if self._config.experts else here[:0, 0]

    def spread(self, loads: Tensor) -> None:
        """Take the loads of a step, added up over all ranks."""
        whole = loads.view(-1, self._config.experts + 1)
        self.loads, self.dropped = whole[:, :-1], whole[:, -1]

    def balance(self) -> None:
        """Move every layer's bias by what the last step's loads ask for. All ranks do the same: no message."""
        for layer, mixture in self._layers.items():
            mixture.update_bias(self.loads[int(layer)], self._config.bias_rate)

    def measures(self) -> dict[str, float]:
        """Return the values of the last step for `expert_streams`."""
        if not self._config.experts:
            return {}
        imbalance = (self.loads.amax(1) / self.loads.mean(1)).max()
        return {
            "expert_imbalance": imbalance.item(),
            "dropped_share": (self.dropped.sum() / self.loads.sum()).item(),
        }


def expert_streams(config: ModelConfig) -> tuple[StreamSpec, ...]:
    """Return what a run records of its experts, none where there are none."""
    if not config.experts:
        return ()
    return (
        StreamSpec("expert_imbalance", "1", "largest over mean load of a layer's experts, the worst layer's"),
        StreamSpec("dropped_share", "1", "pairs of a token and its expert that found no room, of all"),
    )
