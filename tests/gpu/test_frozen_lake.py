"""Training through Ray on this machine's device with the hf engine: a GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from verl.config.plan import resolve_device

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPO = Path(__file__).parents[2]
# nats between engine and trainer on a sampled token: bfloat16 on a GPU, float32 on a CPU
PROBS_DIFF = {"cuda": 0.05, "cpu": 1e-4}


def test_three_steps_of_frozen_lake(tmp_path):
    """Collected, trained and sent to the engine; the weights the engine holds are the trainer's."""
    device, folder = resolve_device("auto"), tmp_path / "run"
    command = [
        sys.executable, "-m", "verl.trainer.main_ppo", "env=frozen_lake", "epo=sciworld",
        f"trainer.default_local_dir={folder}",
        f"trainer.device={device}",
        "trainer.total_training_steps=3",
        "trainer.logger=[console,file]",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "actor_rollout_ref.model.path=small",
        "actor_rollout_ref.rollout.name=hf",
        "actor_rollout_ref.rollout.check_weights=true",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "data.train_batch_size=4",
        "data.max_prompt_length=700",
        "data.max_response_length=256",
        "env.rollout.n=4",
        "env.action_format.kind=plain",  # which the small policy speaks
        "env.max_steps=4",
        "env.val.test.max_tasks=4",
        "algorithm.drop_zero_advantage_groups=false",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{REPO}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "actor/pg_loss" in line]
    assert [line["training/global_step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["training/rollout_probs_diff_mean"] < PROBS_DIFF[device]
        assert line["actor/skipped_steps"] == 0 and line["actor/grad_norm"] > 0
    assert (folder / "global_step_3").is_dir()
