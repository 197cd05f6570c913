"""A trained model as a folder: its own type, and what it has beside the language model."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from verl.config.model import ModelConfig
from verl.workers.model_export import save_causal_lm
from verl.workers.model_loading import load_causal_lm

from .tiny import write_tiny_model, write_with_vision


def tensors_of(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def changed_weights(path):
    """Of the language model, in float32 as a trainer holds them."""
    weights = load_causal_lm(ModelConfig(path=str(path)), torch.float32).state_dict()
    return {name: tensor + 0.125 for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("asked", "written"), [(None, torch.bfloat16), (torch.float32, torch.float32)]
)
def test_the_type_is_the_models_own_unless_another_is_asked_for(tmp_path, asked, written):
    path = write_tiny_model("qwen3", tmp_path / "float32")
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    weights = changed_weights(path)
    save_causal_lm(ModelConfig(path=str(path)), weights, tmp_path / "out", asked)
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {written}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == written


def test_dropout_of_the_model_is_exported(tmp_path):
    path = write_tiny_model("gpt2", tmp_path / "gpt2")
    save_causal_lm(ModelConfig(path=str(path)), changed_weights(path), tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.resid_pdrop == 0.1


def test_weights_of_another_model_are_refused(tmp_path):
    path = write_tiny_model("qwen3_moe", tmp_path / "moe")
    weights = changed_weights(path)
    weights["model.layers.0.mlp.experts.base_layer.down_proj"] = weights.pop(
        "model.layers.0.mlp.experts.down_proj"
    )
    with pytest.raises(ValueError, match=r"missing \['model.layers.0.mlp.experts.down_proj'\]"):
        save_causal_lm(ModelConfig(path=str(path)), weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "gemma3"])
def test_a_vision_tower_comes_along(tmp_path, name):
    path = write_with_vision(name, tmp_path / "whole")
    weights = changed_weights(path)
    save_causal_lm(ModelConfig(path=str(path)), weights, tmp_path / "out")
    before, after = tensors_of(path), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    if name != "gemma3":  # whose vision tower is among the weights that were changed
        kept = [name for name in before if "visual" in name]
        assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        loaded, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not report["missing_keys"]
        assert type(loaded) is type(auto.from_pretrained(path))
    trained = load_causal_lm(ModelConfig(path=str(tmp_path / "out")), torch.float32).state_dict()
    for name, tensor in weights.items():
        assert torch.equal(trained[name], tensor.bfloat16().float()), name
