"""What an engine is sent is what the checkpoint has: names, shapes and values."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from verl.config.model import ModelConfig
from verl.utils.errors import UserError
from verl.workers.checkpoint_names import CheckpointNames, check_names
from verl.workers.model_loading import load_causal_lm
from verl.workers.sharded_model import under_first_names
from verl.workers.weight_sync import lora_adapters

from .tiny import write_tiny_model, write_with_vision


def assert_sent_as_on_disk(config):
    """Returns what the checkpoint has besides."""
    model = load_causal_lm(config, torch.float32)
    names = CheckpointNames(config)
    sent = names.convert(under_first_names(model, model.state_dict()))
    there = load_file(f"{config.path}/model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in sent.items()} == names.shapes
    for name, tensor in sent.items():
        assert torch.equal(tensor, there[name].float()), name
    check_names(config)
    return there.keys() - sent.keys()


# experts in one tensor, and under another name; q, k and v of one tensor; a head with another
# name; names as they are
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "hrm_text", "gpt_neox", "llama (tied)"])
def test_all_that_the_checkpoint_has(tmp_path, name):
    path = write_tiny_model(name, tmp_path)
    assert not assert_sent_as_on_disk(ModelConfig(path=str(path)))


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_the_language_model_within_a_vision_language_model(tmp_path, name):
    config = ModelConfig(path=str(write_with_vision(name, tmp_path)))
    besides = assert_sent_as_on_disk(config)
    assert all(other.startswith("model.visual.") for other in besides)
    assert "model.language_model.embed_tokens.weight" in CheckpointNames(config).shapes


def test_a_checkpoint_of_the_model_below_the_head(tmp_path):
    write_tiny_model("gpt2", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {n.removeprefix("transformer."): t for n, t in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    assert not assert_sent_as_on_disk(ModelConfig(path=str(tmp_path)))


def test_a_stream_gives_what_is_complete(tmp_path):
    """Experts of a layer are many tensors in the checkpoint, and one in memory."""
    config = ModelConfig(path=str(write_tiny_model("qwen3_moe", tmp_path)))
    model = load_causal_lm(config, torch.float32)
    names = CheckpointNames(config)
    stream = names.stream(model.state_dict().items())
    assert next(stream)[0] == "model.embed_tokens.weight"
    assert len(dict(stream)) == len(names.shapes) - 1


def test_adapters_go_to_the_layers_that_the_checkpoint_names(tmp_path):
    path = write_with_vision("qwen3_5", tmp_path)
    config = ModelConfig(path=str(path), lora_rank=2, target_modules="all-linear")
    adapters = lora_adapters(load_causal_lm(config, torch.float32, empty=True).state_dict())
    sent = CheckpointNames(config).convert_adapters(adapters)
    assert len(sent) == len(adapters)
    assert all(".model.language_model.layers." in name for name in sent)


def test_a_checkpoint_without_a_tensor_of_the_model_is_refused(tmp_path):
    write_tiny_model("qwen3", tmp_path)
    config, file = ModelConfig(path=str(tmp_path)), tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"][:5].clone()
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"no model.norm.weight of shape \[128\] \(1 tensors"):
        check_names(config)
    file.unlink()
    check_names(config)  # nothing to compare with: loading says what is missing


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["qwen3_moe", "llama (tied)"])
def test_a_weight_transfer_announces_what_it_sends(tmp_path, name):
    from verl.workers.weight_sync.sender import PolicySource

    config = ModelConfig(path=str(write_tiny_model(name, tmp_path)))
    names, model = CheckpointNames(config), load_causal_lm(config, torch.float32)
    source = PolicySource(model, torch.bfloat16, torch.device("cpu"), names.stream)
    announced = [(meta.name, meta.dtype, tuple(meta.shape)) for meta in source.metadata()]
    assert announced == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
    assert {name: shape for name, _, shape in announced} == names.shapes
