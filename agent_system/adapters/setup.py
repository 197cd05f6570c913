"""What the configuration says of the environment, checked: its prompts and task lists.

The core raises ValueError for a wrong setting; here it becomes the UserError that a user reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from agent_system.environments.registry import bind_env
from agent_system.interfaces import PromptBuilder
from agent_system.multi_turn_rollout.conversation import ChatTemplate
from agent_system.types import Observation, Task
from verl.config.root import PPOConfig
from verl.utils.errors import UserError
from verl.workers.model_loading import load_tokenizer


def check_environment(config: PPOConfig) -> None:
    """Everything about the environment that can be known before a worker is started.

    Raises:
        UserError: unknown environment or option, something it needs is not installed, an empty
            task list, a chat template that is missing or refuses.
    """
    prompts = build_prompts(config)
    with user_errors():
        bind_env(config.env).check()
    for which in ("train", *config.env.val):
        load_tasks(config, which)
    with user_errors():
        write_sample_conversation(config, prompts)


def write_sample_conversation(config: PPOConfig, prompts: PromptBuilder) -> None:
    """One prompt of each kind. Raises ValueError or UserError when the tokenizer cannot."""
    chat = ChatTemplate(load_tokenizer(config.actor_rollout_ref.model))
    observation = Observation("-")
    chat.opening(prompts.system("-"), prompts.first("-", observation))
    if config.env.context.kind == "trajectory":
        chat.continuation(np.empty(0, dtype=np.int32), prompts.next(observation))


def load_tasks(config: PPOConfig, which: str) -> list[Task]:
    """The task list `train` or one of `env.val`. Raises UserError when it is unknown or empty."""
    lists = {**config.env.val, "train": config.env.train}
    if which not in lists:
        raise UserError(f"unknown task list '{which}'; available: {', '.join(sorted(lists))}")
    with user_errors():
        tasks = bind_env(config.env).tasks(lists[which])
    if not tasks:
        raise UserError(f"the task list '{which}' is empty; check the filters of env.{which}")
    return tasks


def build_prompts(config: PPOConfig) -> PromptBuilder:
    """The environment's prompts. Raises UserError on an unknown environment, option or format."""
    with user_errors():
        return bind_env(config.env).prompts(config.env.action_format)


@contextmanager
def user_errors() -> Iterator[None]:
    """The core raises ValueError for wrong settings; the trainer prints UserError to the user."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
