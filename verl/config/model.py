"""What is trained, and how it is laid out over the workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ModelConfig:
    """A Hugging Face causal language model."""

    # a local folder, a hub name, or a name of `verl.workers.model_loading`: small, smollm2
    path: str = "???"
    # local: `path` must be a folder; huggingface: a hub name; auto: either
    load_method: str = "auto"
    tokenizer_path: str | None = None  # default: path
    trust_remote_code: bool = False  # run Python code that comes with the model
    enable_gradient_checkpointing: bool = False  # recompute activations: less memory, more time
    use_remove_padding: bool = True  # pack with flash-attention, trim to the longest row with sdpa
    # auto: flash_attention_2 when installed and on cuda, else sdpa
    attn_implementation: str = "auto"
    lora_rank: int = 0  # 0: train all parameters
    lora_alpha: int = 16  # LoRA's scale is lora_alpha / lora_rank
    target_modules: str = "all-linear"  # LoRA: the layers that get adapters


@dataclass
class FSDPConfig:
    """FSDP2 (`fully_shard`) over all ranks of the worker group."""

    dtype: str = "auto"  # parameters and optimiser: float32 | bfloat16; auto: float32
    # compute: float32 | bfloat16; auto: bfloat16 on cuda, float32 on cpu
    mixed_precision: str = "auto"
    param_offload: bool = False  # cuda: parameters, gradients and optimiser live on the CPU
    optimizer_offload: bool = False  # cuda: keep the optimiser's state on the CPU between updates
    # free gathered parameters after the forward pass: less memory, more traffic
    reshard_after_forward: bool = True


@dataclass
class MicroBatchConfig:
    """How a mini-batch is cut for one forward pass. Never changes the loss or the gradients."""

    micro_batch_size_per_gpu: int | None = None  # rows
    use_dynamic_bsz: bool = False  # cut by tokens instead of rows
    max_token_len_per_gpu: int = 16384
