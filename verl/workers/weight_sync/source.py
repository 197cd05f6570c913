"""The trained policy's weights: handed to the engines, or written as a model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import torch
from torch import Tensor
from transformers import PreTrainedModel

from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan
from verl.workers.checkpoint_names import CheckpointNames
from verl.workers.model_export import save_causal_lm
from verl.workers.model_loading import load_causal_lm
from verl.workers.sharded_model import ShardedModel
from verl.workers.weight_sync.client import Receivers
from verl.workers.weight_sync.gather import full_parameters
from verl.workers.weight_sync.lora import is_adapter, lora_adapters, merge_lora
from verl.workers.weight_sync.packing import LoraAdapter, WeightUpdate, checksum, pack_weights

if TYPE_CHECKING:
    from verl.workers.weight_sync.sender import WeightSender


class PolicyWeights:
    """One rank's part of the way to the engines. Every method is called on all ranks at once."""

    def __init__(
        self, sharded: ShardedModel, model: ModelConfig, engine: EnginePlan, *, checked: bool
    ) -> None:
        """`checked`: updates carry a checksum, which the engines compare."""
        self._sharded = sharded
        self._model = model
        self._engine = engine
        self._checked = checked
        self._merged = MergedWeights(sharded, model)
        self._names = CheckpointNames(model) if engine.reads_checkpoints else None
        self._sender: WeightSender | None = None

    def publish(self, version: int) -> list[ray.ObjectRef]:
        """Rank 0 returns the reference of a `WeightUpdate` in the engines' dtype, others none."""
        adapter = LoraAdapter.of(self._model) if self._engine.takes_adapters else None
        weights = self._adapters() if adapter else self._merged()
        if self._sharded.rank != 0:
            return []
        if self._names is not None:
            convert = self._names.convert_adapters if adapter else self._names.convert
            weights = convert(weights)
        dtype = self._engine.dtype
        packed = pack_weights({name: tensor.to(dtype) for name, tensor in weights.items()})
        compared = checksum(packed) if self._checked else None
        return [ray.put(WeightUpdate(version, packed, adapter, compared))]

    def connect(self, receivers: Receivers, meeting_point: tuple[str, str]) -> None:
        """Open this rank's end of vLLM's weight transfer, anew if there was one.

        `meeting_point`: address and port of this rank; rank 0's counts.
        """
        from verl.workers.weight_sync.sender import PolicySource, WeightSender

        if self._sender is not None:
            self._sender.close()
        sharded, engine, names = self._sharded, self._engine, self._names
        assert names is not None, "only vLLM has a weight transfer"
        source = PolicySource(sharded.model, engine.dtype, sharded.device, names.stream)
        self._sender = WeightSender(
            engine.transport, source, receivers, sharded.rank, meeting_point
        )

    def send(self, version: int) -> None:
        """Send the weights to the engines that `connect` connected."""
        assert self._sender is not None, "connect comes first"
        self._sender.send(version)

    def _adapters(self) -> dict[str, Tensor]:
        """On the CPU; only the adapters are gathered."""
        model, device = self._sharded.model, self._sharded.device
        gathered = full_parameters(model, self._engine.dtype, device, is_adapter)
        return lora_adapters({name: tensor.cpu() for name, tensor in gathered})


class MergedWeights:
    """Gathers the whole weights of a model, LoRA merged. The structure that merging needs is built
    once and holds no weights in between."""

    def __init__(self, sharded: ShardedModel, model: ModelConfig) -> None:
        self._sharded = sharded
        self._model = model

    def __call__(self) -> dict[str, Tensor]:
        """On rank 0; empty on the others, which take part in gathering."""
        weights = self._sharded.full_state_dict()
        if self._model.lora_rank == 0 or self._sharded.rank != 0:
            return weights
        merged = merge_lora(self._structure, weights)
        self._structure.to_empty(device="meta")
        return merged

    @cached_property
    def _structure(self) -> PreTrainedModel:
        return load_causal_lm(self._model, torch.float32, empty=True)


def export(
    sharded: ShardedModel, model: ModelConfig, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write the merged model and its tokenizer as a Hugging Face folder; see `save_causal_lm`.
    Called on all ranks."""
    weights = MergedWeights(sharded, model)()
    if sharded.rank == 0:
        save_causal_lm(model, weights, folder, dtype)
