"""Weights on their way from the trainer to the rollout engines."""

from verl.workers.weight_sync.lora import is_adapter, lora_adapters, merge_lora
from verl.workers.weight_sync.packing import (
    LoraAdapter,
    PackedWeights,
    WeightUpdate,
    checksum,
    load_packed_weights,
    pack_weights,
)

__all__ = [
    "LoraAdapter",
    "PackedWeights",
    "WeightUpdate",
    "checksum",
    "is_adapter",
    "load_packed_weights",
    "lora_adapters",
    "merge_lora",
    "pack_weights",
]
