"""LoRA adapters on their way to an engine: merged into the base weights, or as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

LORA_PREFIX = "base_model.model."


def is_adapter(name: str) -> bool:
    """Whether a parameter of a LoRA model is one of its adapters' matrices."""
    return ".lora_" in name


@torch.no_grad()
def merge_lora(adapted: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a LoRA model as one of its base model: each adapted weight plus what peft
    computes of its adapters, such as lora_alpha / rank * B @ A.

    Hu et al., arXiv:2106.09685, section 4.1. Which layers are adapted, and how (transposed weights,
    all experts of a layer in one tensor), only peft knows.

    Args:
        adapted: the LoRA model without its weights (on the meta device); it is given them.
    """
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    adapted.load_state_dict(state_dict, strict=False, assign=True)
    merged = {_base_name(n): t for n, t in state_dict.items() if not is_adapter(n)}
    names = {id(p): n for n, p in adapted.named_parameters()}
    for layer in adapted.modules():
        if not isinstance(layer, LoraLayer):
            continue
        base = layer.get_base_layer()
        weight = layer.get_param() if isinstance(layer, ParamWrapper) else base.weight
        name = _base_name(names[id(weight)])
        change: Tensor = cast(Any, layer).get_delta_weight("default")
        merged[name] = (merged[name].float() + change.float()).to(merged[name].dtype)
    return merged


def adapts_experts(adapted: nn.Module) -> bool:
    """Whether adapters sit on tensors that hold all experts of a layer."""
    from peft.tuners.lora.layer import ParamWrapper

    return any(isinstance(layer, ParamWrapper) for layer in adapted.modules())


def _base_name(name: str) -> str:
    return name.removeprefix(LORA_PREFIX).replace(".base_layer", "")


def lora_adapters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters alone, under the names that peft gives them in a saved adapter."""
    return {
        name.replace(".default.", "."): tensor
        for name, tensor in state_dict.items()
        if is_adapter(name)
    }
