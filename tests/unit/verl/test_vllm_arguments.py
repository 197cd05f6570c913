"""The configuration as vLLM's arguments, the files that carry weights, and the checks in front of
the engine: without an engine."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models.tiny import write_tiny_model
from verl.config.actor import ActorRolloutRefConfig, RolloutConfig
from verl.config.model import ModelConfig, compute_dtype
from verl.config.plan import EnginePlan
from verl.utils.errors import UserError
from verl.workers.model_loading import load_causal_lm
from verl.workers.rollout.vllm_rollout.arguments import (
    engine_args,
    logprobs_mode,
    uses_sleep_mode,
)
from verl.workers.rollout.vllm_rollout.environment import vllm_environment, vllm_folder
from verl.workers.rollout.vllm_rollout.model_facts import read_model_facts
from verl.workers.rollout.vllm_rollout.weight_files import weight_file, zeros
from verl.workers.weight_sync import LoraAdapter, lora_adapters, pack_weights


def arguments(path, device="cpu", transport="object_store", lora_rank=0, **rollout):
    config = ActorRolloutRefConfig(
        model=ModelConfig(path=path, lora_rank=lora_rank), rollout=RolloutConfig(**rollout)
    )
    dtype = compute_dtype(config.rollout.dtype, device)
    plan = EnginePlan("vllm", device, dtype, 512, transport, takes_adapters=lora_rank > 0)
    return engine_args(config, plan)


def test_cpu_defaults(tiny_model_path):
    given = arguments(tiny_model_path)
    assert (given["model"], given["tokenizer"]) == (tiny_model_path, tiny_model_path)
    assert given["dtype"] == "float32"
    assert given["enforce_eager"] is True
    assert given["enable_chunked_prefill"] is False
    assert given["kv_cache_memory_bytes"] == 2**30
    assert given["distributed_executor_backend"] == "mp"
    assert "gpu_memory_utilization" not in given
    assert "weight_transfer_config" not in given
    assert "enable_lora" not in given


def test_cuda_defaults(tiny_model_path):
    given = arguments(tiny_model_path, "cuda")
    assert given["dtype"] == "bfloat16"
    assert given["enforce_eager"] is False
    assert given["enable_chunked_prefill"] is True
    assert given["gpu_memory_utilization"] == 0.5
    assert given["enable_sleep_mode"] is True
    assert "kv_cache_memory_bytes" not in given
    assert "distributed_executor_backend" not in given


def test_every_key_arrives(tiny_model_path):
    given = arguments(
        tiny_model_path,
        "cuda",
        transport="nccl",
        dtype="float32",
        max_num_seqs=7,
        max_num_batched_tokens=700,
        tensor_model_parallel_size=2,
        gpu_memory_utilization=0.3,
        enforce_eager=True,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        mode="disaggregated",
    )
    assert given["dtype"] == "float32"
    assert (given["max_num_seqs"], given["max_num_batched_tokens"]) == (7, 700)
    assert given["max_model_len"] == 512
    assert (given["tensor_parallel_size"], given["distributed_executor_backend"]) == (2, "ray")
    assert given["gpu_memory_utilization"] == 0.3
    assert given["enforce_eager"] is True
    assert given["enable_chunked_prefill"] is False
    assert given["enable_prefix_caching"] is False
    assert given["enable_sleep_mode"] is False  # the GPU is the engine's own
    assert given["weight_transfer_config"] == {"backend": "nccl"}


@pytest.mark.parametrize(("asked", "tokens"), [(None, 2048), (100, 512), (4000, 4000)])
def test_a_step_on_a_cpu_holds_a_whole_prompt(tiny_model_path, asked, tokens):
    assert arguments(tiny_model_path, max_num_batched_tokens=asked)[
        "max_num_batched_tokens"
    ] == tokens  # fmt: skip


def test_gigabytes_of_cache_are_binary(tiny_model_path):
    # 0.25 * 2**30 = 268435456
    assert arguments(tiny_model_path, cpu_kv_cache_gb=0.25)["kv_cache_memory_bytes"] == 268435456


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (33, 64)])
def test_lora_gets_room_of_a_size_that_vllm_has(tiny_model_path, rank, room):
    given = arguments(tiny_model_path, lora_rank=rank)
    assert (given["enable_lora"], given["max_loras"], given["max_lora_rank"]) == (True, 1, room)


def test_a_rank_beyond_vllms_largest_is_refused(tiny_model_path):
    with pytest.raises(UserError, match=r"lora_rank=513.*lower it"):
        arguments(tiny_model_path, lora_rank=513)


def test_log_probs_are_those_before_the_filter():
    assert logprobs_mode(RolloutConfig(temperature=0.7)) == "processed_logprobs"
    assert logprobs_mode(RolloutConfig(top_p=0.9)) == "raw_logprobs"
    assert logprobs_mode(RolloutConfig(top_k=5)) == "raw_logprobs"
    with pytest.raises(UserError, match=r"temperature=0.7.*top_p=0.9.*rollout.name=hf"):
        logprobs_mode(RolloutConfig(temperature=0.7, top_p=0.9))


@pytest.mark.parametrize(
    ("mode", "free", "device", "sleeps"),
    [
        ("colocated", True, "cuda", True),
        ("colocated", False, "cuda", False),
        ("disaggregated", True, "cuda", False),
        ("colocated", True, "cpu", False),
    ],
)
def test_sleeps_where_the_trainer_needs_the_memory(mode, free, device, sleeps):
    assert uses_sleep_mode(RolloutConfig(mode=mode, free_cache_engine=free), device) is sleeps


def test_environment_is_quiet_keeps_the_users_choice_and_is_restored(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    before = dict(os.environ)
    with vllm_environment("cpu", str(tmp_path), {"MORE": "1"}):
        assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
        assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
        assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert os.environ["MORE"] == "1"
        os.environ["LD_PRELOAD"] = "as vLLM does"
    assert dict(os.environ) == before


@pytest.mark.parametrize("long", [False, True])
def test_sockets_and_temporary_files_are_where_paths_fit_and_go(monkeypatch, tmp_path, long):
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    parent = tmp_path / ("t" * 80) if long else short
    parent.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(parent))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with (
        vllm_folder() as folder,
        vllm_environment("cuda", "organisation/model", {}, folder),
    ):
        assert os.environ["VLLM_RPC_BASE_PATH"] == os.environ["TMPDIR"] == str(folder)
        assert folder.parent == (Path("/tmp") if long else short)
        compiled = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert compiled.parent == parent  # found again by the next run
        (folder / "socket").touch()
    assert not folder.exists()
    short.rmdir()


def test_the_users_folder_for_sockets_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/mine")
    with vllm_environment("cuda", "organisation/model", {}, tmp_path):
        assert os.environ["VLLM_RPC_BASE_PATH"] == "/mine"


def test_a_hub_name_may_be_fetched(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with vllm_environment("cuda", "organisation/model", {}):
        assert "HF_HUB_OFFLINE" not in os.environ
        assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ


@pytest.fixture(scope="module")
def facts(tiny_model_path):
    return read_model_facts(ModelConfig(path=tiny_model_path))


def test_model_facts(facts):
    assert facts.head_size == 8  # 32 hidden / 4 heads
    assert facts.stop_token_ids == (1,)
    assert facts.shapes["model.embed_tokens.weight"] == (60, 32)
    assert "lm_head.weight" not in facts.shapes  # tied


def test_stop_tokens_are_those_of_the_generation_config_too(tiny_model_path, tmp_path):
    model = load_causal_lm(ModelConfig(path=tiny_model_path), torch.float32)
    model.generation_config.eos_token_id = [7, 9]
    model.save_pretrained(tmp_path)
    facts = read_model_facts(ModelConfig(path=str(tmp_path), tokenizer_path=tiny_model_path))
    assert facts.stop_token_ids == (1, 7, 9)


def test_tied_weights_come_once(facts, tiny_model_path):
    model = load_causal_lm(ModelConfig(path=tiny_model_path), torch.float32)
    sent = pack_weights(dict(model.named_parameters()))
    facts.check(sent)
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['lm_head.weight'"):
        facts.check(pack_weights(model.state_dict()))
    layers = {name: packed for name, packed in sent.items() if "layers" in name}
    with pytest.raises(ValueError, match=r"missing \['model.embed_tokens.weight'"):
        facts.check(layers)


def test_latent_attention_caches_one_head(tmp_path):
    facts = read_model_facts(ModelConfig(path=str(write_tiny_model("deepseek_v3", tmp_path))))
    assert facts.head_size == 512 + 64  # latent and rotary part


def test_facts_of_adapters(tiny_model_path):
    config = ModelConfig(path=tiny_model_path, lora_rank=2)
    adapters = pack_weights(lora_adapters(load_causal_lm(config, torch.float32).state_dict()))
    facts = read_model_facts(config)
    facts.check(adapters)
    assert set(facts.shapes) == set(adapters)
    with pytest.raises(ValueError, match="missing"):
        facts.check({})


def test_weight_file_holds_every_type_and_goes_away():
    tensors = {
        "float": torch.randn(3, 5),
        "half": torch.randn(4).bfloat16(),
        "scalar": torch.tensor(2.0),
    }
    with weight_file(pack_weights(tensors)) as file:
        read = load_file(file)
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(read[name], tensor, atol=0, rtol=0)
    assert not file.parent.exists()


def test_adapter_folder_is_what_peft_saves():
    prefix = "base_model.model.model.layers.0"
    shapes = {
        f"{prefix}.self_attn.q_proj.lora_A.weight": (2, 8),
        f"{prefix}.self_attn.q_proj.lora_B.weight": (8, 2),
        f"{prefix}.mlp.up_proj.lora_A.weight": (2, 8),
        f"{prefix}.mlp.up_proj.lora_B.weight": (16, 2),
    }
    with weight_file(zeros(shapes), LoraAdapter(rank=2, alpha=6)) as file:
        settings = json.loads((file.parent / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"]) == (2, 6)
        assert settings["target_modules"] == ["q_proj", "up_proj"]
        assert file.name == "adapter_model.safetensors"
        read = load_file(file)
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == shapes
    assert all(np.all(tensor.numpy() == 0) for tensor in read.values())


@pytest.mark.parametrize(
    ("name", "device", "cached"),
    [("lfm2", "cpu", False), ("lfm2", "cuda", True), ("llama", "cpu", True)],
)
def test_prefixes_of_layers_with_states_are_not_cached_on_a_cpu(tmp_path, name, device, cached):
    """vLLM caches those by chunks of a prefill, and on a CPU a prefill is not cut."""
    given = arguments(str(write_tiny_model(name, tmp_path)), device)
    assert given["enable_prefix_caching"] is cached
    assert given["language_model_only"]
