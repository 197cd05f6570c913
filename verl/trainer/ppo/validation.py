"""Validation: fixed tasks, fixed seeds, a rate with its 95% interval; sampled and greedy apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from verl.config.root import PPOConfig
from verl.trainer.ppo.statistics import success_interval
from verl.utils.logging import progress
from verl.workers.interfaces import AgentWorld, TaskSet, Trajectory
from verl.workers.rollout.rollout_workers import RolloutWorkers

VALIDATION_SEED = 20_251_122  # the same sampling noise in every validation of every run

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "val/<task list>/<mode>/success_rate",
        "share",
        "mean",
        "episodes solved; mode: sampled or greedy",
    ),
    (
        "val/<task list>/<mode>/success_low",
        "share",
        "-",
        "lower end of its 95% interval, in which episodes of one task count as far as they differ",
    ),
    ("val/<task list>/<mode>/success_high", "share", "-", "upper end"),
    ("val/<task list>/<mode>/success_rate/<task>", "share", "mean", "the same of one type of task"),
    (
        "val/<task list>/<mode>/lenient_success_rate",
        "share",
        "mean",
        "as the published code counts it",
    ),
    ("val/<task list>/<mode>/score", "points", "mean", "final score of an episode, 0 to 100"),
    ("val/<task list>/<mode>/length", "turns", "mean", "of an episode"),
    ("val/<task list>/<mode>/n", "episodes", "sum", "measured"),
    ("val/<task list>/<mode>/tasks", "tasks", "sum", "of these episodes"),
    (
        "val/<task list>/<mode>/env_errors",
        "episodes",
        "sum",
        "lost to a broken environment, counted nowhere else",
    ),
)


class Validator:
    """Plays every task set of `env.val` in every mode of `trainer.validation`."""

    def __init__(self, config: PPOConfig, world: AgentWorld, rollouts: RolloutWorkers) -> None:
        self._options = config.trainer.validation
        self._in_flight = config.data.val_batch_size
        self._world = world
        self._rollouts = rollouts
        self._task_sets = world.validation_sets()

    def run(self, on_finished: Callable[[str, list[Trajectory]], None]) -> dict[str, float]:
        """The metrics, under `val/`; `on_finished(name, trajectories)` is called for each part."""
        metrics: dict[str, float] = {}
        for task_set in self._task_sets:
            for mode in self._options.modes:
                trajectories = self._play(task_set, mode)
                metrics |= validation_metrics(f"val/{task_set.name}/{mode}", trajectories)
                on_finished(f"{task_set.name}_{mode}", trajectories)
        return metrics

    def _play(self, task_set: TaskSet, mode: str) -> list[Trajectory]:
        episodes = [
            replace(episode, traj_uid=f"{episode.traj_uid}/{repeat}")
            for episode in task_set.episodes
            for repeat in range(self._options.episodes_per_task)
        ]
        size = self._in_flight or len(episodes)
        trajectories: list[Trajectory] = []
        with progress(total=len(episodes), description=f"{task_set.name} {mode}") as bar:
            for start in range(0, len(episodes), size):
                trajectories += self._rollouts.collect(
                    episodes[start : start + size],
                    self._world.sampling(mode),
                    VALIDATION_SEED,
                    lambda _: bar.update(),
                )
        return trajectories


def validation_metrics(prefix: str, trajectories: list[Trajectory]) -> dict[str, float]:
    """Success with its 95% interval, the published lenient figure, score and length."""
    scored = [t for t in trajectories if t.reason != "env_error"]
    low, high = success_interval((t.episode.uid, t.success) for t in scored)
    metrics = {
        "success_rate": mean(t.success for t in scored),
        "success_low": low,
        "success_high": high,
        "lenient_success_rate": mean(t.info["lenient_success"] for t in scored),
        "score": mean(t.score for t in scored),
        "length": mean(t.num_turns for t in scored),
        "n": len(scored),
        "tasks": len({t.episode.uid for t in scored}),
        "env_errors": len(trajectories) - len(scored),
    }
    by_type = defaultdict(list)
    for trajectory in scored:
        by_type[trajectory.episode.task.name].append(trajectory.success)
    metrics |= {f"success_rate/{name}": mean(values) for name, values in sorted(by_type.items())}
    return {f"{prefix}/{name}": float(value) for name, value in metrics.items()}


def mean(values: Iterable[float]) -> float:
    """0 for no values: a validation in which every environment failed is reported, not raised."""
    numbers = [float(value) for value in values]
    return float(np.mean(numbers)) if numbers else 0.0
