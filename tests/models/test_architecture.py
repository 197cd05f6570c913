"""What is decided from a configuration: kernels, chance, lengths; and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
)

from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan
from verl.utils.errors import UserError
from verl.workers import architecture, model_support
from verl.workers.architecture import attention_kernel, longest_row, without_chance
from verl.workers.model_loading import load_architecture
from verl.workers.model_support import Support, check_engine, check_model, measured, packs_rows

from .tiny import tiny_config


@pytest.fixture
def flash_attention(monkeypatch):
    monkeypatch.setattr(architecture, "is_installed", lambda name: True)


def folder_of(config, path):
    config.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("config", "on_cpu", "on_gpu"),
    [
        (LlamaConfig(), "sdpa", "flash_attention_2"),
        (DeepseekV3Config(), "sdpa", "flash_attention_2"),
        (Gemma3Config(), "sdpa", "flash_attention_2"),
        (Gemma2Config(), "eager", "flash_attention_2"),  # sdpa drops its softcap
        (Gemma2Config(attn_logit_softcapping=None), "sdpa", "flash_attention_2"),
        (GptOssConfig(), "eager", "eager"),  # neither has sinks
    ],
)
def test_the_kernel_computes_what_the_model_needs(flash_attention, config, on_cpu, on_gpu):
    assert attention_kernel("auto", "cpu", config) == on_cpu
    assert attention_kernel("auto", "cuda", config) == on_gpu


def test_without_the_package_there_is_no_flash_attention():
    assert attention_kernel("auto", "cuda", LlamaConfig()) == "sdpa"


def test_a_kernel_that_leaves_something_out_is_refused():
    assert attention_kernel("eager", "cuda", Gemma2Config()) == "eager"
    with pytest.raises(UserError, match=r"drops attn_logit_softcapping=50.0 of gemma2; use auto"):
        attention_kernel("sdpa", "cpu", Gemma2Config())
    with pytest.raises(UserError, match="is not implemented for gpt_oss"):
        attention_kernel("sdpa", "cpu", GptOssConfig())
    with pytest.raises(UserError, match="lacks what the attention of gpt_oss has"):
        attention_kernel("flash_attention_2", "cuda", GptOssConfig())


def test_no_chance_is_left():
    given = GPT2Config()
    still = without_chance(given)
    assert (still.resid_pdrop, still.embd_pdrop, still.attn_pdrop) == (0.0, 0.0, 0.0)
    assert given.resid_pdrop == 0.1
    assert without_chance(MixtralConfig(router_jitter_noise=0.1)).router_jitter_noise == 0.0
    parts = Gemma3Config()
    parts.text_config.attention_dropout = 0.2
    assert without_chance(parts).text_config.attention_dropout == 0.0
    assert parts.text_config.attention_dropout == 0.2


def test_how_long_a_row_may_be():
    assert longest_row(LlamaConfig()) is None
    assert longest_row(tiny_config("phi3 (longrope)")) == 64
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = LlamaConfig(rope_parameters=dynamic, max_position_embeddings=512)
    assert longest_row(config) == 512
    assert longest_row(Gemma3Config()) is None  # its layers differ in their rope


def test_rows_are_packed_only_where_that_was_measured(flash_attention, tmp_path):
    llama = folder_of(tiny_config("llama"), tmp_path / "llama")
    assert packs_rows(ModelConfig(path=llama), "cuda")
    assert not packs_rows(ModelConfig(path=llama, use_remove_padding=False), "cuda")
    assert not packs_rows(ModelConfig(path=llama), "cpu")
    linear = folder_of(tiny_config("qwen3_next"), tmp_path / "qwen3_next")
    assert not packs_rows(ModelConfig(path=linear), "cuda")


def test_what_was_measured_wrong_is_refused(tmp_path):
    bert = folder_of(tiny_config("bert"), tmp_path / "bert")
    with pytest.raises(UserError, match=r"bert lets a token's log-prob depend on later tokens"):
        check_model(ModelConfig(path=bert), "model", tokens=10, device="cpu")


VLLM = Support("LlamaForCausalLM", *[None] * 5, vllm="samples with other log-probs")
ON_CPU = EnginePlan("vllm", "cpu", torch.float32, 64)
ON_GPU = EnginePlan("vllm", "cuda", torch.bfloat16, 64)
IN_HALF = EnginePlan("vllm", "cpu", torch.bfloat16, 64)


@pytest.mark.parametrize(
    ("plan", "accepted", "words"),
    [
        (ON_CPU, False, "vllm samples with other log-probs .*; set .*rollout.name=hf$"),
        (ON_CPU, True, "vllm samples with other log-probs .*; set .*rollout.name=hf$"),
        (ON_GPU, False, "vllm on a CPU in float32 samples .*accept_untested=true"),
        (IN_HALF, False, "vllm on a CPU in float32 samples .*accept_untested=true"),
    ],
)
def test_what_vllm_computes_wrong_is_refused(tmp_path, monkeypatch, plan, accepted, words):
    folder = folder_of(tiny_config("llama"), tmp_path)
    monkeypatch.setattr(model_support, "measured", lambda: {"llama": VLLM})
    with pytest.raises(UserError, match=words):
        check_engine(ModelConfig(path=folder, accept_untested=accepted), plan)


@pytest.mark.parametrize("plan", [ON_GPU, IN_HALF])
def test_what_vllm_was_not_measured_in_can_be_accepted(tmp_path, monkeypatch, plan):
    folder = folder_of(tiny_config("llama"), tmp_path)
    monkeypatch.setattr(model_support, "measured", lambda: {"llama": VLLM})
    with pytest.raises(UserError, match="accept_untested=true"):
        check_engine(ModelConfig(path=folder), plan)
    check_engine(ModelConfig(path=folder, accept_untested=True), plan)


def test_a_kernel_is_refused_before_anything_starts(tmp_path):
    path = folder_of(tiny_config("gemma2"), tmp_path)
    with pytest.raises(UserError, match="drops attn_logit_softcapping"):
        check_model(
            ModelConfig(path=path, attn_implementation="sdpa"), "model", tokens=9, device="cpu"
        )


def test_what_was_not_measured_is_refused_unless_it_is_accepted(tmp_path, monkeypatch):
    folder = folder_of(tiny_config("llama"), tmp_path)
    monkeypatch.setattr(model_support, "measured", dict)
    message = r"is a llama, which is not among .* set model.accept_untested=true"
    with pytest.raises(UserError, match=message):
        check_model(ModelConfig(path=folder), "model", tokens=10, device="cpu")
    check_model(ModelConfig(path=folder, accept_untested=True), "model", tokens=10, device="cpu")


def test_rows_beyond_the_first_frequencies_are_refused(tmp_path):
    folder = folder_of(tiny_config("phi3 (longrope)"), tmp_path)
    check_model(ModelConfig(path=folder), "model", tokens=64, device="cpu")
    with pytest.raises(UserError, match="one has more than 64 tokens, and rows of 65"):
        check_model(ModelConfig(path=folder), "model", tokens=65, device="cpu")


def test_the_shipped_policy_is_supported():
    support = measured()[load_architecture(ModelConfig(path="small")).model_type]
    assert support.trainer is support.hf is support.lora is support.critic is None


def test_configurations_of_the_test_keep_their_type(tmp_path):
    config = AutoConfig.from_pretrained(folder_of(tiny_config("gemma2"), tmp_path))
    assert config.attn_logit_softcapping == 2.0
    assert config.dtype in (None, torch.float32)
