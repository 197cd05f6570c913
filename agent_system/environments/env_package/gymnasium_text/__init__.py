"""Any gymnasium environment whose observations and actions are text, or are made so by a wrapper.

    env.env_name=gymnasium/TextEnv env.options.id=FrozenLake-v1 \\
    env.options.wrapper=agent_system.environments.env_package.gymnasium_text.wrappers:FrozenLakeText

The tasks are seeds of that id: lists train, dev, test, and with a number of them, train:100.
"""

from __future__ import annotations

from agent_system.config import ActionFormatConfig, TaskSetConfig
from agent_system.environments.env_package.gymnasium_text.options import GymnasiumOptions
from agent_system.environments.prompting import PlainPrompts, TextPrompts, make_prompts
from agent_system.environments.registry import EnvPackage, import_object
from agent_system.environments.seeds import SeedTasks, seed_task
from agent_system.types import Task

__all__ = ["PACKAGE", "GymnasiumOptions"]

ENV_NAME = "gymnasium/TextEnv"


def gymnasium_prompts(
    options: GymnasiumOptions, action_format: ActionFormatConfig
) -> TextPrompts | PlainPrompts:
    """The prompt builder for these settings; admissible actions are shown where they are known."""
    return make_prompts(options.rules, action_format, list_actions=True)


def gymnasium_tasks(options: GymnasiumOptions, config: TaskSetConfig) -> list[Task]:
    """Seeds of `env.options.id`, which names the tasks. See `SeedTasks`."""
    tasks = SeedTasks(seed_task, (options.id,), environment=ENV_NAME, content=gymnasium_content)
    return tasks(options, config)


def gymnasium_content(options: GymnasiumOptions, task: Task) -> str | None:
    """What the wrapper's `content_key(options, seed)` says; None where it has none."""
    wrapper = import_object(options.wrapper) if options.wrapper else None
    content_key = getattr(wrapper, "content_key", None)
    if content_key is None or "seed" not in task.options:
        return None
    return content_key(options, task.options["seed"])


PACKAGE = EnvPackage(
    name=ENV_NAME,
    make_env="agent_system.environments.env_package.gymnasium_text.env:GymnasiumTextEnv",
    options=GymnasiumOptions,
    prompts=gymnasium_prompts,
    task_sets=gymnasium_tasks,
    check=lambda: None,
    content=gymnasium_content,
)
