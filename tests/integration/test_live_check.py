"""The live check in real runs: one whose engine's weights were scrambled by hand stops."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from verl.config.compose import compose_config
from verl.config.shipped import SMALL_POLICY
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.run import load_world, training_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPO = Path(__file__).parents[2]
SETTINGS = [
    "env=frozen_lake",
    "env.max_steps=2",
    "env.action_format.kind=plain",  # which the tokenizer can write
    "env.rollout.n=2",
    "env.pool.slots_per_worker=1",  # one after the other: the last digits depend on the company
    "data.train_batch_size=2",
    "data.max_prompt_length=480",
    "data.max_response_length=32",
    "algorithm.drop_zero_advantage_groups=false",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.optim.lr=0.01",
    "actor_rollout_ref.rollout.workers=1",
    "actor_rollout_ref.rollout.cpu_kv_cache_gb=0.25",
    "trainer.device=cpu",
    "trainer.n_gpus_per_node=1",
    "trainer.total_training_steps=2",
    "trainer.logger=[console,file]",
    "trainer.val_before_train=false",
    "trainer.val_after_train=false",
    "trainer.save_freq=-1",
]
# An engine of one's own around a built-in one. From version 1 on, two tensors lose their order.
SCRAMBLED = """
import dataclasses
from verl.workers.rollout.hf_rollout import build_hf_rollout
from verl.workers.rollout.vllm_rollout.engine import build_vllm_rollout

SCRAMBLED = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight")


class Scrambled:
    def __init__(self, engine):
        self.engine = engine

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def load_weights(self, update):
        if update.version > 0:
            tensors = dict(update.tensors)
            for name in SCRAMBLED:
                dtype, shape, content = tensors[name]
                rows = content.reshape(shape[0], -1)
                tensors[name] = dtype, shape, rows[::-1].copy().reshape(-1)
            update = dataclasses.replace(update, tensors=tensors)
        self.engine.load_weights(update)


def hf(config, plan):
    return Scrambled(build_hf_rollout(config, plan))


def vllm(config, plan):
    return Scrambled(build_vllm_rollout(config, plan))
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    """The small policy's words and shape with random weights, and heads that vLLM has a kernel
    for."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SMALL_POLICY)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            initializer_range=0.2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    folder = tmp_path_factory.mktemp("policy")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(folder: Path, policy: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    (folder.parent / "scrambled.py").write_text(SCRAMBLED)
    return subprocess.run(
        [
            sys.executable, "-m", "verl.trainer.main_ppo", *SETTINGS,
            f"trainer.default_local_dir={folder}",
            f"actor_rollout_ref.model.path={policy}",
            *overrides,
        ],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "cause"),
    [
        (
            "hf",
            "the engine does not hold these tensors as they were sent: "
            "model.layers.0.self_attn.q_proj.weight, model.layers.1.mlp.up_proj.weight;",
        ),
        pytest.param(
            "vllm",
            "they agreed at step 0, so new weights do not reach the engine;",
            marks=pytest.mark.vllm,
        ),
    ],
)
def test_scrambled_weights_stop_the_run_with_one_sentence(tmp_path, policy, engine, cause):
    done = train(tmp_path / "run", policy, f"actor_rollout_ref.rollout.name=scrambled:{engine}")
    assert done.returncode == 2, done.stderr[-4000:]
    error = done.stderr[done.stderr.index("error: ") :]
    assert (
        f"after the weight sync of step 1 the engine of rollout worker 0 (scrambled:{engine})"
        in error
    )
    assert cause in error
    assert "Traceback" not in error


DIFF = "training/live_check_diff"


class Lines:
    """A tracker that keeps the metrics of each step."""

    def __init__(self):
        self.steps = []

    def log(self, metrics, step):
        self.steps.append(metrics)

    def state_dict(self):
        return {}


@pytest.mark.parametrize(
    ("engine", "overrides"),
    [
        ("hf", ["trainer.n_gpus_per_node=2"]),
        (
            "hf",
            [
                "actor_rollout_ref.model.lora_rank=4",
                "trainer.async_steps=1",
                "trainer.total_training_steps=3",  # the engines are given weights before 1 and 2
                "algorithm.rollout_correction=token_tis",
            ],
        ),
        pytest.param("vllm", [], marks=pytest.mark.vllm),
        pytest.param(
            "vllm",
            ["actor_rollout_ref.model.lora_rank=4"],
            marks=pytest.mark.vllm,
        ),
    ],
    ids=["hf on two ranks", "hf, LoRA, one step ahead", "vllm", "vllm, adapters"],
)
def test_the_check_changes_no_number_of_a_run(tmp_path, policy, engine, overrides):
    """Off and on, from the same weights: all numbers but times are equal to the last digit."""
    _, config = compose_config(
        [
            *SETTINGS,
            f"trainer.default_local_dir={tmp_path / 'run'}",
            f"actor_rollout_ref.model.path={policy}",
            f"actor_rollout_ref.rollout.name={engine}",
            *overrides,
        ],
        "ppo_trainer",
    )
    with training_run(config, {}) as trainer:
        trainer.workers.actor.save_checkpoint(str(tmp_path / "untrained"))
        off, on = (fitted(trainer, tmp_path / "untrained", enable) for enable in (False, True))
    checks = [line.pop(DIFF) for line in on if DIFF in line]
    assert len(checks) == 2 and all(0 <= diff < 1e-3 for diff in checks)
    assert [without_times(line) for line in on] == [without_times(line) for line in off]


def fitted(trainer, checkpoint: Path, enable: bool) -> list[dict[str, float]]:
    """The lines of a whole run from the checkpoint's weights, with the workers of `trainer`."""
    trainer.workers.actor.load_checkpoint(str(checkpoint))
    config = deepcopy(trainer.config)
    config.actor_rollout_ref.rollout.live_check.enable = enable
    config.trainer.default_local_dir = str(checkpoint.parent / str(enable))
    lines = Lines()
    run = (config, trainer.plan, load_world(config), trainer.workers, None, lines)
    RayPPOTrainer(*run).fit()
    return lines.steps


def without_times(line: dict[str, float]) -> dict[str, float]:
    timed = ("timing_", "perf/", "rollout/engine_idle_share", "rollout/tokens_per_second")
    return {name: value for name, value in line.items() if not name.startswith(timed)}
