"""LoRA adapters on their way to an engine: merged into the base weights, or as they are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_LORA_PREFIX = "base_model.model."


def is_adapter(name: str) -> bool:
    """Whether a parameter of a LoRA model is one of its adapters' matrices."""
    return ".lora_" in name


def merge_lora(state_dict: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The state dict of a LoRA model as one of its base model: W + scaling * B @ A.

    Hu et al., arXiv:2106.09685, section 4.1; `scaling` = lora_alpha / rank. Without adapters the
    dict comes back as it is.
    """
    merged = {}
    for name, tensor in state_dict.items():
        if is_adapter(name):
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down = state_dict[f"{layer}.lora_A.default.weight"].float()
            up = state_dict[f"{layer}.lora_B.default.weight"].float()
            tensor = (tensor.float() + scaling * (up @ down)).to(tensor.dtype)
        merged[name.removeprefix(_LORA_PREFIX).replace(".base_layer.", ".")] = tensor
    return merged


def lora_adapters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters alone, under the names that peft gives them in a saved adapter."""
    return {
        name.replace(".default.", "."): tensor
        for name, tensor in state_dict.items()
        if is_adapter(name)
    }
