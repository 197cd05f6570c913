"""Random weights over the vocabulary of the small policy, for every engine on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from verl.config.shipped import SMALL_POLICY


def random_llama(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """Two layers with a tied head, and heads of 32, which vLLM's CPU attention has a kernel for.

    Its distributions are far from uniform, so that a wrong weight or log-prob shows. `config`:
    what is to be otherwise.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(SMALL_POLICY)
    usual = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlamaForCausalLM(LlamaConfig(**(usual | config))).eval()


def write_random_llama(folder: Path, **config: Any) -> str:
    """The same on disk, with the small policy's tokenizer. Returns the folder."""
    random_llama(**config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SMALL_POLICY).save_pretrained(folder)
    return str(folder)
