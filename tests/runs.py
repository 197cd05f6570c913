"""Whole runs, small enough for a test: settings, command line, and a tracker that remembers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REPO = Path(__file__).parents[1]

TASKS, GROUP = 2, 2
# One rank, one rollout worker, a few episodes a step.
SMALL = [
    f"data.train_batch_size={TASKS}",
    f"env.rollout.n={GROUP}",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.rollout.workers=1",
    "algorithm.drop_zero_advantage_groups=false",  # so few episodes often all fail
    "trainer.n_gpus_per_node=1",
]
UNVALIDATED = ["trainer.val_before_train=false", "trainer.val_after_train=false"]
# Two steps of the quickest environment, for a policy of any vocabulary.
LAKE = [
    *SMALL,
    *UNVALIDATED,
    "env=frozen_lake",
    "env.max_steps=2",
    "env.action_format.kind=plain",  # which every tokenizer can write
    "data.max_prompt_length=480",
    "data.max_response_length=32",
    "actor_rollout_ref.actor.optim.lr=0.01",
    "actor_rollout_ref.rollout.cpu_kv_cache_gb=0.25",
    "trainer.device=cpu",
    "trainer.total_training_steps=2",
    "trainer.logger=[console,file]",
    "trainer.save_freq=-1",
]


def command(module: str, *arguments: str) -> list[str]:
    """Of one of the entry points in `verl.trainer`."""
    return [sys.executable, "-m", f"verl.trainer.{module}", *arguments]


def environment() -> dict[str, str]:
    """This repository's packages from any folder, and no run on anybody's account."""
    return {**os.environ, "PYTHONPATH": str(REPO), "WANDB_MODE": "offline"}


def run(
    module: str,
    *arguments: str,
    cwd: Path,
    timeout_s: float = 500,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`command` until its end, whatever that is."""
    return subprocess.run(
        command(module, *arguments),
        cwd=cwd,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


class Lines:
    """A tracker that keeps the metrics of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.steps.append(metrics)

    def state_dict(self) -> dict[str, float]:
        return {}
