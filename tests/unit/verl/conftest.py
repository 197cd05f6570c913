"""A tiny random policy on disk, and a process group of one rank.

Imports stay inside the fixtures: most tests here need neither transformers nor a process group.
"""

from __future__ import annotations

import pytest

TINY_VOCABULARY = 60
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Llama of 2 layers with grouped key-value heads and a tied head; words w0..w59, end w1.

    The weights are large: its distributions are far from uniform, and a wrong log-prob shows.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=TINY_VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=2,
        )
    )
    words = {f"w{index}": index for index in range(TINY_VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="w0", eos_token="w1", pad_token="w2"
    )
    tokenizer.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("tiny_policy")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def single_rank(monkeypatch: pytest.MonkeyPatch):
    """A process group of this process alone, for the duration of a test; its WorkerRuntime."""
    import torch
    import torch.distributed as dist

    from verl.workers.fsdp_engine import init_distributed
    from verl.workers.runtime import WorkerRuntime

    monkeypatch.delenv("RANK", raising=False)
    runtime = WorkerRuntime("cpu", seed=0, cpu_threads=torch.get_num_threads())
    init_distributed(runtime)
    yield runtime
    dist.destroy_process_group()
