"""Every causal language model that transformers knows, with few small layers, random weights.

Its default configuration is taken, and each size that it names becomes a small one; what does not
fit together then, or is off by default and makes a model what it is, stands in `OVERRIDES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from verl.config.shipped import SMALL_POLICY

MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 288  # at least the tokenizer's
LAYERS = 4
WINDOW = 16  # of a sliding window: shorter than the rows that are compared
SPREAD = 0.1  # of the weights: distributions far from uniform, so that a wrong one shows

NAMES: dict[str, str] = {
    "hidden": (
        "hidden_size n_embd d_model dim embed_dim embedding_dim embedding_size lru_width "
        "word_embed_proj_dim"
    ),
    "inner": (
        "intermediate_size ffn_dim n_inner d_ff ffn_hidden_size decoder_ffn_dim encoder_ffn_dim "
        "intermediate_size_mlp block_ff_dim"
    ),
    "expert": (
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "moe_shared_expert_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size "
        "mamba_d_state state_size "
        "ssm_state_size hidden_size_per_layer_input"
    ),
    "layers": (
        "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks encoder_layers"
    ),
    "four": (
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
        "encoder_attention_heads n_routed_experts num_experts num_local_experts moe_num_experts "
        "linear_num_value_heads linear_num_heads zero_expert_num"
    ),
    "two": (
        "num_key_value_heads num_experts_per_tok num_experts_per_token moe_k moe_topk "
        "num_selected_experts linear_num_key_heads index_n_heads mamba_expand expand hc_mult "
        "n_shared_experts num_shared_experts"
    ),
    "one": (
        "n_group topk_group num_expert_group first_k_dense_replace moe_layer_start_index "
        "num_dense_layers num_codebooks mamba_n_groups n_groups"
    ),
    "zero": "num_kv_shared_layers",
    "head": (
        "head_dim global_head_dim kv_channels q_lora_rank qk_nope_head_dim v_head_dim "
        "linear_key_head_dim linear_value_head_dim index_head_dim linear_head_dim mamba_d_head "
        "mamba_head_dim o_lora_rank"
    ),
    "latent": "kv_lora_rank",
    "rotary": "qk_rope_head_dim",
    "mamba_heads": "mamba_n_heads mamba_num_heads",
    "mamba_inner": "mamba_d_ssm",
    "positions": (
        "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length model_max_length"
    ),
    "vocabulary": "vocab_size vocab_size_per_layer_input",
    "window": "sliding_window index_topk attention_window_size attention_chunk_size",
}
NUMBERS = {
    "hidden": 128,
    "inner": 96,
    "expert": 16,
    "layers": LAYERS,
    "four": 4,
    "two": 2,
    "one": 1,
    "zero": 0,
    "head": 32,
    "latent": 512,  # with the next one the only size that vLLM computes on a CPU
    "rotary": 64,
    "mamba_heads": 8,
    "mamba_inner": 256,
    "positions": 256,
    "vocabulary": VOCABULARY,
    "window": WINDOW,
}
SMALL = {name: NUMBERS[size] for size, names in NAMES.items() for name in names.split()}
LAYER_LISTS = ("layer_types", "mlp_layer_types")
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 1.0,
}

# layers that see everything have larger heads
GEMMA_4 = {"per_layer_config": {1: {"head_dim": 64}, 3: {"head_dim": 64}}}

OVERRIDES: dict[str, dict[str, Any]] = {
    "afmoe": {
        "score_func": "sigmoid",
        "route_norm": True,
        "n_group": 1,
        "topk_group": 1,
    },  # for vLLM
    "codegen": {"rotary_dim": 16},
    "deepseek_v2": {
        "topk_method": "greedy",
        "num_experts_per_tok": 2,
        "topk_group": 1,
        "n_group": 1,
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},  # for vLLM
    "falcon": {"ffn_hidden_size": 512},  # four times the hidden size, of which vLLM is certain
    "gemma2": {"attn_logit_softcapping": 2.0},  # 50 hides what a kernel without it does
    "gemma3n_text": {
        "intermediate_size": [96] * LAYERS,
        "activation_sparsity_pattern": [0.5, 0.0] * 2,
    },
    "gemma4": GEMMA_4,
    "gemma4_text": GEMMA_4,
    "gemma4_unified": GEMMA_4,
    "gemma4_unified_text": GEMMA_4,
    "gpt_neo": {
        "attention_types": [[["global", "local"], 2]],
        "attention_layers": ["global", "local"] * 2,
        "window_size": WINDOW,
    },
    "glm4_moe": {"head_dim": 32},  # for vLLM
    "gptj": {"rotary_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 32},
    "hunyuan_v1_moe": {"head_dim": 32},
    "kimi_linear": {"num_experts_per_token": 2},
    "laguna": {"num_attention_heads_per_layer": [4] * LAYERS},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "conv_dim": 128, "block_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "conv_dim": 128},
    "llama4": {"attention_chunk_size": 32},  # a multiple of vLLM's blocks
    "llama4_text": {"attention_chunk_size": 32},
    "mamba2": {"num_heads": 8},
    "minimax_m2": {
        "rotary_dim": 32,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    },  # for vLLM
    "ministral": {"head_dim": 32},
    "mistral": {"sliding_window": WINDOW},
    "nemotron": {"num_key_value_heads": 2},
    "xglm": {"attention_heads": 4},
    "zamba": {"attention_head_dim": 64, "attention_hidden_size": 256, "n_mamba_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "mamba_headdim": 32,
        "attention_head_dim": 64,
        "attention_hidden_size": 256,
    },
}
# further forms of a type: settings that change what is computed
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3 (longrope)": (
        "phi3",
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 128,
        },
    ),
    "qwen2 (sliding window)": (
        "qwen2",
        {
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
    ),
    "llama (tied)": ("llama", {"tie_word_embeddings": True}),
    "llama (rope dynamic)": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
}


def tiny_config(name: str) -> PreTrainedConfig:
    """Of a type in MODEL_TYPES or a form in VARIANTS."""
    model_type, changes = VARIANTS.get(name, (name, {}))
    config = CONFIG_MAPPING[model_type]()
    for part in [*vars(config).values(), config]:
        if isinstance(part, PreTrainedConfig):
            _shrink(part)
    text = config.get_text_config(decoder=True)
    for key, value in (OVERRIDES.get(model_type, {}) | changes).items():
        setattr(text, key, value)
    return config


def write_tiny_model(name: str, folder: Path, **changes: Any) -> Path:
    """The model with its tokenizer, as a folder that the trainer loads. `changes`: of its
    configuration."""
    config = tiny_config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=SPREAD)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(SMALL_POLICY).save_pretrained(folder)
    return folder


def write_with_vision(name: str, folder: Path) -> Path:
    """Of a vision-language type, its checkpoint as it is published: bfloat16, one small vision
    layer."""
    config = tiny_config(name)
    vision = config.vision_config
    if hasattr(vision, "depth"):
        vision.depth, vision.out_hidden_size = 1, config.get_text_config().hidden_size
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SMALL_POLICY).save_pretrained(folder)
    return folder


def _shrink(config: PreTrainedConfig) -> None:
    for key, value in list(vars(config).items()):
        if key in SMALL and isinstance(value, int) and not isinstance(value, bool):
            setattr(config, key, SMALL[key])
        elif key in LAYER_LISTS and isinstance(value, list):
            kinds = list(dict.fromkeys(value))
            setattr(config, key, (kinds * LAYERS)[:LAYERS])
        elif key.endswith("_token_id") and value is not None:
            setattr(config, key, _token(key))
    if getattr(config, "kv_lora_rank", None) is not None:  # latent attention: a key for each head
        config.num_key_value_heads = SMALL["num_attention_heads"]
    if hasattr(config, "qk_rope_head_dim") and getattr(config, "head_dim", None) is not None:
        config.head_dim = config.qk_rope_head_dim
    if hasattr(config, "qk_nope_head_dim") and hasattr(config, "qk_head_dim"):
        config.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim


def _token(key: str) -> int:
    return 0 if key == "pad_token_id" else 4  # the tokenizer's end of a turn
