"""Weights on their way from the trainer to the rollout engines.

They travel as plain numpy bytes: a shared-memory object store hands those out without a copy, and
bfloat16, which numpy lacks, survives.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from verl.config.model import ModelConfig

# name -> (dtype such as "bfloat16", shape, the bytes as uint8)
PackedWeights = Mapping[str, tuple[str, tuple[int, ...], np.ndarray]]


@dataclass(frozen=True)
class LoraAdapter:
    """What an engine has to know of adapters, besides their tensors."""

    rank: int
    alpha: int

    @classmethod
    def of(cls, model: ModelConfig) -> LoraAdapter:
        return cls(model.lora_rank, model.lora_alpha)


@dataclass(frozen=True)
class WeightUpdate:
    """The weights of one version.

    `tensors`: all weights of the model; or, with `adapter`, only the LoRA matrices, under peft's
    names. `checksum`: of `tensors` as the trainer had them; None when none was asked for.
    """

    version: int
    tensors: PackedWeights
    adapter: LoraAdapter | None = None
    checksum: int | None = None


def checksum(weights: PackedWeights) -> int:
    """CRC-32 of names, types, shapes and bytes, whatever their order. About 1 GB/s."""
    total = 0
    for name in sorted(weights):
        dtype, shape, content = weights[name]
        total = zlib.crc32(f"{name} {dtype} {tuple(shape)}".encode(), total)
        total = zlib.crc32(content.data, total)
    return total


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
