"""What has to be known of the model in front of the engine: names, shapes and end tokens.

From the architecture alone: no weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import GenerationConfig

from verl.config.model import ModelConfig
from verl.utils.errors import UserError
from verl.workers.model_loading import (
    load_causal_lm,
    load_tokenizer,
    resolve_model_path,
    stop_token_ids,
)
from verl.workers.weight_sync import PackedWeights, lora_adapters


@dataclass(frozen=True)
class ModelFacts:
    """`shapes`: of the tensors an update brings; names in `aliases` share one tensor (tied
    weights), and one of them suffices."""

    head_size: int
    stop_token_ids: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]
    aliases: tuple[frozenset[str], ...]

    def check(self, weights: PackedWeights) -> None:
        """Raises ValueError when a name is missing or unknown or a shape differs."""
        unknown = sorted(set(weights) - set(self.shapes))
        missing = sorted(min(names) for names in self.aliases if names.isdisjoint(weights))
        if unknown or missing:
            raise ValueError(
                f"the weights do not fit the engine's model: missing {missing[:3]}, unknown "
                f"{unknown[:3]}; trainer and engine must load the same model.path"
            )
        for name, (_, shape, _) in weights.items():
            if tuple(shape) != self.shapes[name]:
                raise ValueError(
                    f"weight {name} has shape {tuple(shape)}, the engine's model expects "
                    f"{self.shapes[name]}; trainer and engine must load the same model.path"
                )


def read_model_facts(model: ModelConfig) -> ModelFacts:
    """With `model.lora_rank` > 0 an update brings the adapters alone.

    Raises:
        UserError: the model is missing or is not a causal language model.
    """
    policy = load_causal_lm(replace(model, attn_implementation="eager"), torch.float32, empty=True)
    with suppress(OSError):  # a folder without one has its end tokens in the model's config
        policy.generation_config = GenerationConfig.from_pretrained(
            resolve_model_path(model.path, model.load_method)
        )
    tensors: Mapping[str, Tensor] = policy.state_dict(keep_vars=True)
    if model.lora_rank > 0:
        tensors = lora_adapters(tensors)
    text = policy.config.get_text_config()
    return ModelFacts(
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        stop_token_ids=tuple(sorted(stop_token_ids(policy, load_tokenizer(model)))),
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        aliases=_aliases(tensors),
    )


def _aliases(tensors: Mapping[str, Tensor]) -> tuple[frozenset[str], ...]:
    names_of: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        names_of.setdefault(id(tensor), set()).add(name)
    return tuple(frozenset(names) for names in names_of.values())


def check_cpu_head_size(head_size: int, model_path: str) -> None:
    """Raises UserError when vLLM's attention on CPUs has no kernel for heads of this size."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head_size not in sizes:
        raise UserError(
            f"model.path={model_path!r} has attention heads of size {head_size}, but vLLM on a CPU "
            f"runs only {', '.join(map(str, sizes))}; set actor_rollout_ref.rollout.name=hf"
        )
