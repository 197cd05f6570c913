"""What has to be known of the model in front of the engine: names, shapes and end tokens.

From the architecture alone: no weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from verl.config.model import ModelConfig
from verl.utils.errors import UserError
from verl.workers.checkpoint_names import CheckpointNames
from verl.workers.model_loading import (
    load_causal_lm,
    load_generation_config,
    load_tokenizer,
    stop_token_ids,
)
from verl.workers.weight_sync import PackedWeights, lora_adapters


@dataclass(frozen=True)
class ModelFacts:
    """`head_size`: of what its attention caches, for `latent` one that serves all heads. `shapes`:
    of the tensors an update brings."""

    head_size: int
    latent: bool
    stop_token_ids: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def check(self, weights: PackedWeights) -> None:
        """Raises ValueError when a name is missing or unknown or a shape differs."""
        unknown = sorted(set(weights) - set(self.shapes))
        missing = sorted(set(self.shapes) - set(weights))
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
    policy.generation_config = load_generation_config(model) or policy.generation_config
    text = policy.config.get_text_config(decoder=True)
    latent = getattr(text, "kv_lora_rank", None)
    per_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelFacts(
        head_size=latent + text.qk_rope_head_dim if latent else per_head,
        latent=latent is not None,
        stop_token_ids=tuple(sorted(stop_token_ids(policy, load_tokenizer(model)))),
        shapes=_sent_shapes(model, policy),
    )


def _sent_shapes(model: ModelConfig, policy: PreTrainedModel) -> Mapping[str, tuple[int, ...]]:
    names = CheckpointNames(model)
    if model.lora_rank == 0:
        return names.shapes
    adapters = names.convert_adapters(lora_adapters(policy.state_dict()))
    return {name: tuple(tensor.shape) for name, tensor in adapters.items()}


def check_on_cpu(facts: ModelFacts, model_path: str) -> None:
    """Raises UserError when vLLM's attention on CPUs has no kernel for heads of this size."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

    backend = CPUMLABackend if facts.latent else CPUAttentionBackend
    sizes = backend.get_supported_head_sizes()
    if facts.head_size not in sizes:
        kind = "latent keys and values" if facts.latent else "attention heads"
        raise UserError(
            f"model.path={model_path!r} has {kind} of size {facts.head_size}, but vLLM on a CPU "
            f"runs only {', '.join(map(str, sizes))}; set actor_rollout_ref.rollout.name=hf"
        )
