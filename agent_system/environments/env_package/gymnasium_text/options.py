"""The settings of the gymnasium adapter, `env.options`."""

from __future__ import annotations

from dataclasses import dataclass, field

import gymnasium

from agent_system.environments.registry import import_object


@dataclass(frozen=True)
class GymnasiumOptions:
    """Which environment, and how it becomes text.

    `id`: a registered one, "FrozenLake-v1"; "my_module:MyEnv-v0" imports my_module first.
    `kwargs`: arguments of `gymnasium.make`.
    `wrapper`: import path "module:callable" of what makes text of observations and actions, called
    with the environment and `wrapper_kwargs` (see `wrappers.py`); "" where they are text already.
    `success`: import path of a function of an `Outcome` (see `env.py`): is the task solved? ""
    takes `info["success"]`.
    `task_text`: the task in words; "" takes `info["task_text"]`.
    `rules`: what the environment is and which commands it takes, for the system prompt.
    """

    id: str = ""
    kwargs: dict = field(default_factory=dict)
    wrapper: str = ""
    wrapper_kwargs: dict = field(default_factory=dict)
    success: str = ""
    task_text: str = ""
    rules: str = "You play a game. Every observation answers your last command."

    def __post_init__(self) -> None:
        """Raises ValueError on an unknown id and on an import path that leads nowhere."""
        if not self.id:
            raise ValueError("env.options.id is missing; name an environment such as FrozenLake-v1")
        try:
            gymnasium.spec(self.id)
        except (gymnasium.error.Error, ImportError) as error:
            raise ValueError(f"env.options.id='{self.id}' is no environment: {error}") from error
        for path in filter(None, (self.wrapper, self.success)):
            import_object(path)
