"""What is trained, and how it is laid out over the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from verl.config.fields import setting
from verl.utils.errors import UserError

DTYPES = ("auto", "float32", "bfloat16")
LOAD_METHODS = ("auto", "local", "huggingface")


@dataclass
class ModelConfig:
    """A Hugging Face causal language model."""

    path: str = setting(
        "???",
        "a local folder, a hub name, or a name of `verl.workers.model_loading`: small, smollm2",
    )
    load_method: str = setting(
        "auto",
        "local: `path` must be a folder; huggingface: a hub name; auto: either",
        choices=LOAD_METHODS,
        harmless=True,
    )
    tokenizer_path: str | None = setting(None, "default: path")
    chat_template_kwargs: dict[str, Any] = setting(
        {}, "variables of the chat template, for example {enable_thinking: false}"
    )
    chat_template_date: str | None = setting(
        None, "today for the chat template, as 2026-01-31; null: the day the run was started"
    )
    trust_remote_code: bool = setting(
        False, "run Python code that comes with the model", harmless=True, door=True
    )
    accept_untested: bool = setting(
        False,
        "take an architecture that docs/models.md does not list, or not for vLLM on this device",
        harmless=True,
    )
    enable_gradient_checkpointing: bool = setting(
        False, "recompute activations: less memory, more time", harmless=True
    )
    use_remove_padding: bool = setting(
        True, "pack with flash-attention, trim to the longest row with sdpa", harmless=True
    )
    attn_implementation: str = setting(
        "auto",
        "auto: the first of flash_attention_2 (installed, on cuda), sdpa and eager that computes "
        "all that the model's attention has",
        choices=("auto", "sdpa", "eager", "flash_attention_2"),
        harmless=True,
    )
    lora_rank: int = setting(0, "0: train all parameters", least=0)
    lora_alpha: int = setting(16, "LoRA's scale is lora_alpha / lora_rank", least=1)
    target_modules: str = setting("all-linear", "LoRA: the layers that get adapters")


@dataclass
class FSDPConfig:
    """FSDP2 (`fully_shard`) over all ranks of the worker group."""

    dtype: str = setting("auto", "of parameters and optimiser; auto: float32", choices=DTYPES)
    mixed_precision: str = setting(
        "auto",
        "of what is computed; auto: bfloat16 on cuda, float32 on cpu",
        choices=DTYPES,
    )
    param_offload: bool = setting(
        False, "cuda: parameters, gradients and optimiser live on the CPU", harmless=True
    )
    optimizer_offload: bool = setting(
        False, "cuda: keep the optimiser's state on the CPU between updates", harmless=True
    )
    reshard_after_forward: bool = setting(
        True,
        "free gathered parameters after the forward pass: less memory, more traffic",
        harmless=True,
    )


@dataclass
class MicroBatchConfig:
    """How a mini-batch is cut for one forward pass. Never changes the loss or the gradients."""

    micro_batch_size_per_gpu: int | None = setting(
        None, "rows a forward pass", least=1, harmless=True
    )
    use_dynamic_bsz: bool = setting(False, "cut by tokens instead of rows", harmless=True)
    max_token_len_per_gpu: int = setting(
        16384, "tokens, when cut by tokens", least=1, harmless=True
    )


def resolve_dtype(name: str, auto: torch.dtype) -> torch.dtype:
    """One of DTYPES by name; `auto` stands for the argument. Raises UserError on another name."""
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not supported; use one of {', '.join(DTYPES)}")
    return auto if name == "auto" else getattr(torch, name)


def compute_dtype(name: str, device: str) -> torch.dtype:
    """The same, where `auto` is bfloat16 on cuda and float32 on cpu."""
    return resolve_dtype(name, torch.bfloat16 if device == "cuda" else torch.float32)
