"""Environment managers and their construction, by the names that users of verl-agent know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from agent_system.config import EnvConfig, TaskSetConfig
from agent_system.environments.base import EnvironmentManagerBase, VectorEnv
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import get_env_package
from agent_system.environments.tasks import TaskSampler
from agent_system.environments.vector_env import PoolVectorEnv
from agent_system.interfaces import PromptBuilder
from agent_system.memory import LastTurns
from agent_system.types import Observation, ParsedAction, Task, Turn

Projection = Callable[[list[str]], tuple[list[str], list[int]]]
NO_TOKENS = np.zeros(0, dtype=np.int32)


class TextEnvironmentManager(EnvironmentManagerBase):
    """Puts the environment's rules, the task and the last turns into each prompt.

    The prompt is that of the `turn` context with `env.context.history_length` turns.
    """

    def __init__(self, envs: VectorEnv, projection_f: Projection, config: EnvConfig) -> None:
        super().__init__(envs, projection_f, config)
        self._prompts = _prompts(config)
        self._history = LastTurns(config.context.history_length)

    def reset(
        self, kwargs: Sequence[Task] | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """As the base class; every row's history starts anew."""
        texts, infos = self.envs.reset(kwargs)
        self._task_texts = [info["task_text"] for info in infos]
        self._turns: list[list[Turn]] = [[] for _ in texts]
        self.receive(infos)
        return self._observations(texts), infos

    def remember(self, commands: list[str], texts: list[str]) -> None:
        """Add the turns to the history that the next prompts show."""
        for turns, command, text in zip(self._turns, commands, texts, strict=True):
            turns.append(_text_turn(len(turns), command, text))

    def receive(self, infos: list[dict[str, Any]]) -> None:
        """Keep the commands that are accepted now, for prompts that list them."""
        self._admissible = [info.get("admissible_actions") for info in infos]

    def build_text_obs(self, texts: list[str]) -> list[str]:
        """System and user message of the next turn, as one text a row."""
        return [self._prompt(row, text) for row, text in enumerate(texts)]

    def _prompt(self, row: int, text: str) -> str:
        task_text, turns = self._task_texts[row], self._turns[row]
        system = self._prompts.system(task_text)
        history = self._history.select(turns)
        observation = Observation(text, self._admissible[row])
        user = self._prompts.turn(task_text, history, observation, len(turns))
        return user if system is None else f"{system}\n\n{user}"


class SciWorldEnvironmentManager(TextEnvironmentManager):
    """ScienceWorld, under the name that other code imports."""


class AlfWorldEnvironmentManager(TextEnvironmentManager):
    """ALFWorld, under the name that other code imports."""


_MANAGERS: Mapping[str, type[TextEnvironmentManager]] = MappingProxyType(
    {
        "sciworld/SciWorldEnv": SciWorldEnvironmentManager,
        "alfworld/AlfredTWEnv": AlfWorldEnvironmentManager,
    }
)


def make_envs(
    config: EnvConfig, train_batch_size: int, val_batch_size: int
) -> tuple[TextEnvironmentManager, TextEnvironmentManager]:
    """Managers for training and validation, with their own environment processes.

    Training has `train_batch_size` tasks in groups of `env.rollout.n`; validation has
    `val_batch_size` episodes at a time, of all lists in `env.val`.
    """
    train = _manager(
        config, [config.train], train_batch_size, config.rollout.n, weights=config.task_weights
    )
    val_sets = list(config.val.values())
    return train, _manager(config, val_sets, val_batch_size, 1, weights="uniform_tasks")


def _manager(
    config: EnvConfig,
    task_sets: Sequence[TaskSetConfig],
    tasks: int,
    group_size: int,
    *,
    weights: str,
) -> TextEnvironmentManager:
    package = get_env_package(config.env_name)
    package = package.configured(package.parse_options(config.options))
    listed = [task for tasks_of in task_sets for task in package.task_sets(tasks_of)]
    slots = replace(config.pool, slots_per_worker=tasks * group_size)
    envs = PoolVectorEnv(
        EnvPool(config.env_name, config.options, slots),
        TaskSampler(listed, config.seed, weights=weights),
        group_size,
    )
    manager = _MANAGERS.get(config.env_name, TextEnvironmentManager)
    return manager(envs, _projection(_prompts(config)), config)


def _prompts(config: EnvConfig) -> PromptBuilder:
    package = get_env_package(config.env_name)
    return package.prompts(package.parse_options(config.options), config.action_format)


def _projection(prompts: PromptBuilder) -> Projection:
    """The action format's parser as a projection function."""

    def project(responses: list[str]) -> tuple[list[str], list[int]]:
        parsed = [prompts.parse(response, Observation("")) for response in responses]
        return [action.text for action in parsed], [int(a.is_format_valid) for a in parsed]

    return project


def _text_turn(index: int, command: str, observation: str) -> Turn:
    """A turn of which only the texts are known: what a prompt shows."""
    return Turn(
        index=index,
        prompt_ids=NO_TOKENS,
        response_ids=NO_TOKENS,
        log_probs=NO_TOKENS,
        response_text="",
        action=ParsedAction(command, is_format_valid=True),
        observation=observation,
        reward=0.0,
    )
