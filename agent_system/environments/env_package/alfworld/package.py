"""What ALFWorld adds to a plain package: its task lists are read from a configured folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from agent_system.environments.env_package.alfworld.data import find_data_dir
from agent_system.environments.env_package.alfworld.options import AlfWorldOptions
from agent_system.environments.env_package.alfworld.tasks import alfworld_tasks
from agent_system.environments.registry import EnvPackage


def check_installed() -> None:
    """Raises ValueError when the package `alfworld` or its simulator is missing."""
    for module in ("alfworld", "textworld", "fast_downward"):
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"ALFWorld needs the package '{module}'; install it with pip install '.[alfworld]'"
            )


@dataclass(frozen=True)
class AlfWorldPackage(EnvPackage):
    """Task lists and checks look into `env.options.data_dir`."""

    check: Callable[[], None] = check_installed

    def configured(self, options: AlfWorldOptions) -> EnvPackage:
        """The package whose lists are those of the folder that `options` name."""
        return replace(
            self, task_sets=partial(alfworld_tasks, data_dir=find_data_dir(options.data_dir))
        )
