"""vLLM on a CPU, started as a run starts it, against the trainer: as it is, after it is sent the
weights that it has, and after it is sent others."""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec

import pytest
import torch

from verl.config.actor import ActorRolloutRefConfig, RolloutConfig
from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan
from verl.workers.rollout.engines import build_engine

from .conformance import wrong_in_vllm
from .tiny import write_tiny_model, write_with_vision

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

FAMILIES = ("qwen3_moe", "gemma2", "falcon_h1")


def assert_right(folder):
    config = ActorRolloutRefConfig(
        model=ModelConfig(path=str(folder)),
        rollout=RolloutConfig(name="vllm", max_num_seqs=4, cpu_kv_cache_gb=0.1),
    )
    engine = build_engine(config, EnginePlan("vllm", "cpu", torch.float32, max_model_len=128))
    with closing(engine):
        engine.start()
        assert wrong_in_vllm(engine, folder) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_the_trainers(tmp_path, name):
    assert_right(write_tiny_model(name, tmp_path / "model"))


@pytest.mark.skipif(find_spec("torchvision") is None, reason="vLLM's class needs torchvision")
def test_log_probs_of_a_vision_language_model_are_the_trainers(tmp_path):
    assert_right(write_with_vision("qwen3_5", tmp_path / "model"))
