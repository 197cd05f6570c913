"""Training on a GPU: flash-attention, and a run as a user starts it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from verl import DataProto
from verl.config.plan import make_plan
from verl.trainer.ppo.cluster import start_trainers
from verl.trainer.ppo.placement import trainer_pool
from verl.trainer.session import ray_cluster

from .gpu_run import RESPONSE, gpu_config, rows_of

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1200)]

REPO = Path(__file__).parents[2]


def log_probs_with(policy_path: str, attention: str) -> torch.Tensor:
    """(rows, response) of rows of unequal length, which flash-attention packs end to end."""
    config = gpu_config(policy_path, f"actor_rollout_ref.model.attn_implementation={attention}")
    rows = rows_of(tuple(range(30, 30 + RESPONSE)))
    for row, length in enumerate((RESPONSE, 7, 3, 1)):
        rows["response_mask"] = rows["response_mask"].clone()
        rows["response_mask"][row, length:] = 0
        rows["attention_mask"][row, -RESPONSE:] = rows["response_mask"][row]
    data = DataProto.from_dict(rows)
    plan = make_plan(config)
    pool = trainer_pool(config, plan)
    with ray_cluster(config.ray_kwargs.ray_init, pool.world_size + 1):
        actor = start_trainers(config, plan, pool, None, 1)["actor"]
        log_probs = actor.compute_log_prob(data).batch["old_log_probs"]
    return log_probs * rows["response_mask"]


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="no flash-attn")
def test_flash_attention_on_packed_rows_equals_sdpa(policy_path):
    packed = log_probs_with(policy_path, "flash_attention_2")
    torch.testing.assert_close(packed, log_probs_with(policy_path, "sdpa"), atol=0.1, rtol=0)


@pytest.mark.skipif(importlib.util.find_spec("scienceworld") is None, reason="no ScienceWorld")
def test_two_steps_beside_a_sleeping_engine(tmp_path):
    folder = tmp_path / "run"
    overrides = [
        f"trainer.default_local_dir={folder}",
        "trainer.device=cuda",
        "trainer.total_training_steps=2",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.3",
        "data.train_batch_size=2",
        "env.rollout.n=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "algorithm.drop_zero_advantage_groups=false",
    ]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "quickstart"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [*command, *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "actor/pg_loss" in line]
    assert [line["training/global_step"] for line in steps] == [1, 2]
    # engine and trainer hold the same weights in both steps, in bfloat16
    assert all(line["training/rollout_probs_diff_mean"] < 0.05 for line in steps)
