"""Validation: fixed tasks, fixed seeds, a rate with its 95% interval; sampled and greedy apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from verl.trainer.ppo.metric_utils import wilson_interval
from verl.workers.interfaces import AgentWorld, TaskSet
from verl.workers.rollout.group import RolloutGroup

VALIDATION_SEED = 20_251_122  # the same sampling noise in every validation of every run


def validate(
    world: AgentWorld,
    rollouts: RolloutGroup,
    task_set: TaskSet,
    mode: str,
    episodes_per_task: int,
    on_trajectory: Callable[[Any], None] = lambda trajectory: None,
) -> tuple[dict[str, float], list[Any]]:
    """Play `task_set` in `mode` (sampled | greedy). Returns (`val/` metrics, trajectories)."""
    episodes = [
        replace(episode, traj_uid=f"{episode.traj_uid}/{repeat}")
        for episode in task_set.episodes
        for repeat in range(episodes_per_task)
    ]
    trajectories = rollouts.collect(episodes, world.sampling(mode), VALIDATION_SEED, on_trajectory)
    return validation_metrics(f"val/{task_set.name}/{mode}", trajectories), trajectories


def validation_metrics(prefix: str, trajectories: list[Any]) -> dict[str, float]:
    """Success with its Wilson 95% interval, the published lenient figure, score and length."""
    scored = [t for t in trajectories if t.reason != "env_error"]
    successes = sum(t.success for t in scored)
    low, high = wilson_interval(successes, len(scored))
    metrics = {
        "success_rate": successes / max(len(scored), 1),
        "success_low": low,
        "success_high": high,
        "lenient_success_rate": mean(t.info["lenient_success"] for t in scored),
        "score": mean(t.score for t in scored),
        "length": mean(t.num_turns for t in scored),
        "n": len(scored),
        "env_errors": len(trajectories) - len(scored),
    }
    by_type = defaultdict(list)
    for trajectory in scored:
        by_type[trajectory.episode.task.name].append(trajectory.success)
    metrics |= {f"success_rate/{name}": mean(values) for name, values in sorted(by_type.items())}
    return {f"{prefix}/{name}": float(value) for name, value in metrics.items()}


def mean(values: Any) -> float:
    """0 for no values: a validation in which every environment failed is reported, not raised."""
    numbers = [float(value) for value in values]
    return float(np.mean(numbers)) if numbers else 0.0
