"""A mixture of experts in whole runs: what each engine sampled has the trainer's probabilities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny import write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPO = Path(__file__).parents[2]
SETTINGS = [
    "env=frozen_lake",
    "env.max_steps=2",
    "env.action_format.kind=plain",  # what the small vocabulary can write
    "env.rollout.n=2",
    "env.pool.slots_per_worker=2",
    "data.train_batch_size=2",
    "data.max_prompt_length=480",
    "data.max_response_length=32",
    "algorithm.drop_zero_advantage_groups=false",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.optim.lr=0.01",
    "actor_rollout_ref.actor.entropy_coeff=0.1",  # a gradient even if no game is won
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


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_qwen3_moe_learns_from_what_its_engine_sampled(tmp_path, engine):
    policy = write_tiny_model("qwen3_moe", tmp_path / "policy", max_position_embeddings=1024)
    done = subprocess.run(
        [
            sys.executable, "-m", "verl.trainer.main_ppo", *SETTINGS,
            f"trainer.default_local_dir={tmp_path / 'run'}",
            f"actor_rollout_ref.model.path={policy}",
            f"actor_rollout_ref.rollout.name={engine}",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "training/rollout_probs_diff_max" in line]
    assert len(steps) == 2
    for step in steps:
        assert step["training/rollout_probs_diff_max"] < 1e-3
        assert step["training/live_check_diff"] < 1e-3
        assert step["actor/grad_norm"] > 0
