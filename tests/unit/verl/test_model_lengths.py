"""How many positions a model has, and that longer rows are refused before anything starts."""

import pytest
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
)

from verl.config.algorithm import DataConfig
from verl.config.critic import CriticModelConfig
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.utils.errors import UserError
from verl.workers.architecture import positions_of
from verl.workers.model_support import check_models


def rope(kind, **parameters):
    return {"rope_type": kind, "rope_theta": 10000.0, **parameters}


PHI3_FACTORS = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize(
    ("architecture", "count", "origin"),
    [
        (GPT2Config(n_positions=1024), 1024, "max_position_embeddings=1024"),
        (OPTConfig(max_position_embeddings=2048), 2048, "max_position_embeddings=2048"),
        (LlamaConfig(max_position_embeddings=4096), 4096, "max_position_embeddings=4096"),
        (
            LlamaConfig(max_position_embeddings=4096, rope_parameters=rope("linear", factor=4.0)),
            16384,  # 4096 * 4
            "4096 x 4 of rope linear",
        ),
        (  # switched on by hand, as Qwen's model cards say
            Qwen2Config(
                max_position_embeddings=32768,
                rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32768),
            ),
            131072,  # 32768 * 4
            "32768 x 4 of rope yarn",
        ),
        (  # the scaled length is stated
            LlamaConfig(
                max_position_embeddings=131072,
                rope_parameters=rope(
                    "llama3",
                    factor=8.0,
                    original_max_position_embeddings=8192,  # * 8 = 65536
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                ),
            ),
            131072,
            "max_position_embeddings=131072",
        ),
        (
            Phi3Config(
                hidden_size=64,
                num_attention_heads=4,
                max_position_embeddings=128,
                original_max_position_embeddings=32,
                rope_parameters=rope("longrope", **PHI3_FACTORS),
            ),
            128,
            "max_position_embeddings=128",
        ),
        (
            Gemma3TextConfig(max_position_embeddings=131072),
            131072,
            "max_position_embeddings=131072",
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "model_type") else None,
)
def test_positions_and_where_their_number_comes_from(architecture, count, origin):
    assert positions_of(architecture) == (count, origin)


@pytest.mark.parametrize("architecture", [BloomConfig(), FalconConfig(alibi=True), MambaConfig()])
def test_some_models_have_no_limit(architecture):
    assert positions_of(architecture) is None


def run_with(path, *, engine="hf", prompt=500, response=12, max_model_len=None, critic=None):
    config = PPOConfig(data=DataConfig(max_prompt_length=prompt, max_response_length=response))
    policy = config.actor_rollout_ref
    policy.model.path, policy.rollout.name = path, engine
    policy.rollout.max_model_len = max_model_len
    if critic is not None:
        config.critic.model = CriticModelConfig(
            path=critic, load_method="auto", trust_remote_code=False
        )
        config.algorithm.adv_estimator = "gae"
    check_models(config, make_plan(config))


@pytest.mark.parametrize("engine", ["hf", "vllm", "my_agent.engine:build"])
def test_longer_rows_are_refused_for_every_engine(tiny_model_path, engine):
    run_with(tiny_model_path, engine=engine)  # 500 + 12 = 512
    with pytest.raises(UserError) as error:
        run_with(tiny_model_path, engine=engine, response=13)
    assert str(error.value) == (
        f"actor_rollout_ref.model.path={tiny_model_path!r} has 512 positions "
        "(max_position_embeddings=512), and rows of 513 tokens are asked for; lower the lengths of "
        "data together to 512, or choose another model"
    )


def test_the_engines_own_length_and_the_critic_count_too(tiny_model_path, tmp_path):
    with pytest.raises(UserError, match=r"rows of 600 tokens .*rollout.max_model_len to 512"):
        run_with(tiny_model_path, max_model_len=600)
    GPT2Config(n_positions=256).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^critic.model.path=.* has 256 positions"):
        run_with(tiny_model_path, critic=str(tmp_path))
