"""The agent's side of the trainer, on the driver: tasks in, trajectories and rows out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from itertools import cycle, islice
from typing import Any, cast

from agent_system.adapters.rollout_worker import RolloutWorker
from agent_system.adapters.rows import episode_metrics, to_data_proto, trajectory_record
from agent_system.adapters.setup import build_prompts, check_environment, load_tasks
from agent_system.environments.registry import bind_env
from agent_system.environments.task_files import count_overlap, describe_tasks, task_list_hash
from agent_system.environments.tasks import TaskSampler
from agent_system.types import Episode, Observation, SamplingParams, Task, Trajectory
from verl import DataProto
from verl.config.root import PPOConfig
from verl.utils.errors import UserError
from verl.workers.interfaces import AgentWorld, TaskSet
from verl.workers.model_loading import load_chat_template, load_tokenizer


class World(AgentWorld[Trajectory]):
    """See `verl.workers.interfaces.AgentWorld`."""

    worker_class = RolloutWorker

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        self._drawn = 0

    @cached_property
    def _sampler(self) -> TaskSampler:
        env = self._config.env
        return TaskSampler(self._train_tasks, seed=env.seed, weights=env.task_weights)

    @cached_property
    def _train_tasks(self) -> list[Task]:
        return load_tasks(self._config, "train")

    @cached_property
    def _pad_token_id(self) -> int:
        tokenizer = load_tokenizer(self._config.actor_rollout_ref.model)
        return cast(int, tokenizer.pad_token_id)

    def check(self) -> None:
        check_environment(self._config)

    def train_episodes(self, count: int, group_size: int) -> list[Episode]:
        first = self._drawn
        self._drawn += count
        return [
            episode
            for i, task in enumerate(self._sampler.next(count), start=first)
            for episode in group_of(task, f"train-{i}", group_size)
        ]

    def validation_sets(self) -> list[TaskSet]:
        sets = []
        for name in self._config.env.val:
            tasks = load_tasks(self._config, name)
            sets.append(TaskSet(name, one_episode_each(tasks, name), task_list_hash(tasks)))
        return sets

    def task_lists(self) -> dict[str, Any]:
        env, train = self._config.env, self._train_tasks
        content = bind_env(env).content
        validation = {}
        for name, config in env.val.items():
            tasks = load_tasks(self._config, name)
            in_training = {"in_training": count_overlap(train, tasks, content)}
            validation[name] = describe_tasks(config, tasks) | in_training
        weights = {"weights": env.task_weights}
        return {
            "train_tasks": describe_tasks(env.train, train) | weights,
            "validation_sets": validation,
        }

    def sample_prompts(self, count: int, date: str) -> list[list[int]]:
        """Openings of the first tasks. No environment is asked: a task stands for its texts."""
        prompts = build_prompts(self._config)
        chat = load_chat_template(self._config.actor_rollout_ref.model, date)
        openings = []
        for task in islice(cycle(self._train_tasks), count):
            first = prompts.first(task.key, Observation(task.key))
            openings.append(chat.opening(prompts.system(task.key), first).tolist())
        return openings

    def sampling(self, mode: str) -> SamplingParams:
        rollout = self._config.actor_rollout_ref.rollout
        drawn_by = rollout if mode == "train" else rollout.val_kwargs
        greedy = mode == "greedy" or (mode == "sampled" and not rollout.val_kwargs.do_sample)
        tagged = self._config.env.action_format.kind == "think_action"
        return SamplingParams(
            temperature=0.0 if greedy else drawn_by.temperature,
            top_p=drawn_by.top_p,
            top_k=drawn_by.top_k,
            max_tokens=self._config.data.max_response_length,
            stop=tuple(self._config.env.action_format.stop) if tagged else (),
        )

    def to_data_proto(self, trajectories: list[Trajectory]) -> DataProto:
        """See `agent_system.adapters.rows`. Raises UserError when no episode came to a turn."""
        if not any(trajectory.turns for trajectory in trajectories):
            raise UserError(self._nothing_played(trajectories))
        return to_data_proto(
            trajectories,
            pad_token_id=self._pad_token_id,
            context_kind=self._config.env.context.kind,
        )

    def _nothing_played(self, trajectories: list[Trajectory]) -> str:
        reasons = Counter(trajectory.reason for trajectory in trajectories)
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        logs = self._config.env.pool.log_dir or f"{self._config.trainer.default_local_dir}/env_logs"
        return (
            f"no episode of this step came to its first turn ({told or 'none was played'}), so "
            f"there is nothing to train on; see {logs} for the reason; when it is mended, run the "
            "same command again, which goes on from the last checkpoint"
        )

    def metrics(self, trajectories: list[Trajectory]) -> dict[str, float]:
        return episode_metrics(trajectories)

    def record(self, trajectory: Trajectory) -> dict[str, Any]:
        return trajectory_record(trajectory)

    def state_dict(self) -> dict[str, Any]:
        sampler = self._sampler.state_dict()
        return {"env_name": self._config.env.env_name, "sampler": sampler, "drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when `state` is of another environment or of other tasks."""
        env_name = self._config.env.env_name
        played = state.get("env_name", env_name)  # older checkpoints do not say
        if played != env_name:
            raise ValueError(f"its run played env.env_name={played}, this one {env_name}")
        self._sampler.load_state_dict(state["sampler"])
        self._drawn = state["drawn"]


def one_episode_each(tasks: list[Task], name: str) -> list[Episode]:
    """A task that a list has twice is one uid: its episodes are no independent measurements."""
    first: dict[str, int] = {}
    uids = [f"{name}-{first.setdefault(task.key, i)}" for i, task in enumerate(tasks)]
    return [
        Episode(task, uid, f"{name}-{i}/0")
        for i, (task, uid) in enumerate(zip(tasks, uids, strict=True))
    ]


def group_of(task: Task, uid: str, size: int) -> list[Episode]:
    """`size` episodes of one task under one uid."""
    return [Episode(task, uid, f"{uid}/{member}") for member in range(size)]
