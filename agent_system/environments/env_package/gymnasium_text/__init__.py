"""Any gymnasium environment whose observations and actions are text, or are made so by a wrapper.

    env.env_name=gymnasium/TextEnv env.options.id=FrozenLake-v1 \\
    env.options.wrapper=agent_system.environments.env_package.gymnasium_text.wrappers:FrozenLakeText

The tasks are seeds of that id: lists train, dev, test, and with a number of them, train:100.
"""

from __future__ import annotations

from dataclasses import replace

from agent_system.config import ActionFormatConfig
from agent_system.environments.env_package.gymnasium_text.options import GymnasiumOptions
from agent_system.environments.prompting import PlainPrompts, TextPrompts, make_prompts
from agent_system.environments.registry import EnvPackage
from agent_system.environments.seeds import SeedTasks, seed_task

__all__ = ["PACKAGE", "GymnasiumOptions"]


def gymnasium_prompts(
    options: GymnasiumOptions, action_format: ActionFormatConfig
) -> TextPrompts | PlainPrompts:
    """The prompt builder for these settings; admissible actions are shown where they are known."""
    return make_prompts(options.rules, action_format, list_actions=True)


class GymnasiumPackage(EnvPackage):
    """Tasks are named by `env.options.id`."""

    def configured(self, options: GymnasiumOptions) -> EnvPackage:
        """The package whose tasks are those of this id."""
        return replace(self, task_sets=SeedTasks(seed_task, (options.id,), environment=self.name))


PACKAGE = GymnasiumPackage(
    name="gymnasium/TextEnv",
    make_env="agent_system.environments.env_package.gymnasium_text.env:GymnasiumTextEnv",
    options=GymnasiumOptions,
    prompts=gymnasium_prompts,
    task_sets=SeedTasks(seed_task, ("gymnasium",), environment="gymnasium/TextEnv"),
    check=lambda: None,
)
