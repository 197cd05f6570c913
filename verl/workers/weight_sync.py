"""Weights on their way from the trainer to the rollout engines.

They travel as plain numpy bytes: a shared-memory object store hands those out without a copy, and
bfloat16, which numpy lacks, survives.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# name -> (dtype such as "bfloat16", shape, the bytes as uint8)
PackedWeights = Mapping[str, tuple[str, tuple[int, ...], np.ndarray]]

_LORA_PREFIX = "base_model.model."


class ObjectStoreSync:
    """A `WeightSync` through Ray's shared-memory object store, also between nodes."""

    def publish(self, state_dict: Mapping[str, Tensor], version: int) -> Any:
        """Store the weights; returns their `ray.ObjectRef`, which keeps them alive."""
        import ray

        logger.debug("publishing weights of version %d", version)
        return ray.put(pack_weights(state_dict))


def pack_weights(state_dict: Mapping[str, Tensor]) -> PackedWeights:
    """A CPU state dict as bytes."""
    return {name: _pack(tensor) for name, tensor in state_dict.items()}


@torch.no_grad()
def load_packed_weights(model: nn.Module, weights: PackedWeights) -> None:
    """Copy `weights` into `model` in place, converting dtype and device.

    Raises:
        ValueError: a weight is unknown to the model, has another shape, or one of the model's is
            missing (a tied weight needs one of its names). Nothing has been copied then.
    """
    targets = model.state_dict(keep_vars=True)
    _check_complete(targets, weights)
    for name, (dtype, shape, content) in weights.items():
        targets[name].copy_(_unpack(dtype, shape, content))


def merge_lora(state_dict: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The state dict of a LoRA model as one of its base model: W + scaling * B @ A.

    Hu et al., arXiv:2106.09685, section 4.1; `scaling` = lora_alpha / rank. Without adapters the
    dict comes back as it is.
    """
    merged = {}
    for name, tensor in state_dict.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down = state_dict[f"{layer}.lora_A.default.weight"].float()
            up = state_dict[f"{layer}.lora_B.default.weight"].float()
            tensor = (tensor.float() + scaling * (up @ down)).to(tensor.dtype)
        merged[name.removeprefix(_LORA_PREFIX).replace(".base_layer.", ".")] = tensor
    return merged


def _pack(tensor: Tensor) -> tuple[str, tuple[int, ...], np.ndarray]:
    content = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), content


def _unpack(dtype: str, shape: tuple[int, ...], content: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # it is only read
        return torch.from_numpy(content).view(getattr(torch, dtype)).view(shape)


def _check_complete(targets: Mapping[str, Tensor], weights: PackedWeights) -> None:
    unknown = sorted(set(weights) - set(targets))
    given = {targets[name].data_ptr() for name in weights if name in targets}
    missing = sorted(name for name, target in targets.items() if target.data_ptr() not in given)
    if unknown or missing:
        raise ValueError(
            f"the weights do not fit the engine's model: missing {missing[:3]}, unknown "
            f"{unknown[:3]}; trainer and engine must load the same model.path"
        )
    for name, (_, shape, _) in weights.items():
        if tuple(targets[name].shape) != tuple(shape):
            raise ValueError(
                f"weight {name} has shape {tuple(shape)}, the engine's model expects "
                f"{tuple(targets[name].shape)}; trainer and engine must load the same model.path"
            )
