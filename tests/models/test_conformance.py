"""The families that people train, measured anew; and that measuring finds what was once wrong."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from verl.config.model import ModelConfig
from verl.workers import model_loading
from verl.workers.model_loading import load_causal_lm
from verl.workers.model_support import Support, measured
from verl.workers.weight_sync import merge_lora

from . import conformance
from .conformance import (
    Policy,
    rows_of,
    wrong_in_forward,
    wrong_in_hf_engine,
    wrong_when_packed,
)
from .measure import PAGE, measure, page
from .tiny import MODEL_TYPES, VARIANTS, write_tiny_model

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5",
    "mixtral",
    "mistral",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi3",
    "gpt2",
    "opt",
    "falcon",
    "deepseek_v3",
    "gpt_oss",
    "glm4",
    "granite",
    "olmo2",
    "smollm3",
    "lfm2",
    *VARIANTS,
)
REST = tuple(name for name in MODEL_TYPES if name not in FAMILIES)


def assert_as_recorded(name):
    found, recorded = measure(name), measured().get(name)
    if found is None or recorded is None:
        assert found is recorded
        return
    assert found.model_class == recorded.model_class
    for field in fields(Support):
        if field.name not in ("model_class", "vllm"):
            got, want = getattr(found, field.name), getattr(recorded, field.name)
            assert (got is None) == (want is None), f"{field.name}: {got}, recorded: {want}"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_as_recorded(name):
    assert_as_recorded(name)


@pytest.mark.models
@pytest.mark.parametrize("name", REST)
def test_all_others_are_as_recorded(name):
    assert_as_recorded(name)


def test_the_page_says_what_was_measured():
    assert PAGE.read_text() == page(), "run python -m tests.models.measure"


def test_the_families_are_right():
    for name in FAMILIES:
        support = measured()[name]
        assert support.trainer is support.lora is support.critic is None, name


def test_a_kernel_without_the_softcap_is_found(tmp_path, monkeypatch):
    folder = write_tiny_model("gemma2", tmp_path / "gemma2")
    monkeypatch.setattr(model_loading, "attention_kernel", lambda *_: "sdpa")
    assert "differs from its own eager attention" in wrong_in_forward(folder)


def test_dropout_in_an_update_is_found(tmp_path, monkeypatch):
    folder = write_tiny_model("gpt2", tmp_path / "gpt2")
    assert wrong_in_forward(folder) is None
    monkeypatch.setattr(model_loading, "without_chance", lambda config: config)
    assert "something else in an update" in wrong_in_forward(folder)


def test_a_first_update_on_policy_is_neither_clipped_nor_away_from_itself(tmp_path):
    config = ModelConfig(path=str(write_tiny_model("gpt2", tmp_path / "gpt2")))
    metrics = Policy(config).update(rows_of())
    assert metrics["actor/pg_clipfrac"] == 0.0
    assert metrics["actor/kl_loss"] == pytest.approx(0.0, abs=1e-9)


def test_rescaled_positions_are_found(tmp_path, monkeypatch):
    folder = write_tiny_model("phi3 (longrope)", tmp_path / "phi3")
    assert wrong_in_forward(folder) is None
    monkeypatch.setattr(conformance, "LENGTHS", (20, 90, 21))
    rows = conformance.rows_of
    monkeypatch.setattr(conformance, "rows_of", lambda lengths=(20, 90, 21): rows(lengths))
    assert "other log-probs beside other rows" in wrong_in_forward(folder)


def test_rows_that_leak_are_found(tmp_path):
    assert "leak" in wrong_when_packed(write_tiny_model("qwen3_next", tmp_path / "qwen3_next"))
    assert wrong_when_packed(write_tiny_model("qwen3", tmp_path / "qwen3")) is None


@pytest.mark.parametrize("name", ["deepseek_v3", "gemma2", "gpt_oss", "mistral"])
def test_the_hf_engine_computes_special_attention(tmp_path, name):
    """Values of another size than keys; bounded scores; sinks; a window."""
    assert wrong_in_hf_engine(write_tiny_model(name, tmp_path / name)) is None


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt2", "gpt_oss"])
def test_merging_equals_the_library(tmp_path, name):
    """Experts in one tensor, transposed weights, experts and biases."""
    config = ModelConfig(path=str(write_tiny_model(name, tmp_path / name)), lora_rank=3)
    model = load_causal_lm(config, torch.float32)
    for parameter_name, parameter in model.named_parameters():
        if ".lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merge_lora(load_causal_lm(config, torch.float32, empty=True), weights)
    want = model.merge_and_unload().state_dict()
    assert merged.keys() == want.keys()
    for key, tensor in merged.items():
        torch.testing.assert_close(tensor, want[key], atol=1e-5, rtol=1e-5)
