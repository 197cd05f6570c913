"""A small policy for the tests here, which all need a CUDA device (marker gpu)."""

from __future__ import annotations

import pytest
import torch

VOCABULARY = 512


@pytest.fixture(scope="session")
def policy_path(tmp_path_factory: pytest.TempPathFactory, write_policy) -> str:
    """With a head size that CUDA kernels take; words w0..w511."""
    return write_policy(
        tmp_path_factory.mktemp("policy"),
        vocab_size=VOCABULARY,
        dtype=torch.bfloat16,
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,
    )
