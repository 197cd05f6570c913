"""An environment of your own in a few lines: write a game, get a package. See examples/custom_env.

    class Door(TextGame):
        task_text = "Open the door."

        def start(self, task):
            return Reply("A closed door.", actions=("open door", "wait"))

        def play(self, command):
            if command == "open door":
                return Reply("It is open.", success=True)
            return Reply("Nothing happens.", actions=("open door", "wait"))

    PACKAGE = game_package(Door, rules="You are in front of a door.")

and then `env.env_name=my_module:PACKAGE`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent_system.environments.prompting import make_prompts
from agent_system.environments.registry import EnvPackage
from agent_system.environments.seeds import SeedTasks, seed_task
from agent_system.types import Task

FULL_SCORE = 100.0


@dataclass(frozen=True)
class Reply:
    """What a game answers.

    `success`: the task is solved. `over`: it can no longer be. `score`: points, 0-100; None: 100
    for a success, 0 otherwise. `actions`: the commands accepted now; None: the game does not say.
    """

    text: str
    success: bool = False
    over: bool = False
    score: float | None = None
    actions: tuple[str, ...] | None = None


class TextGame(ABC):
    """Base of a game; makes a `TextEnv` of it.

    `task_text`: the task in words, on the class or set by `start`. An instance plays one episode
    after another in a process of its own; `options` are the package's settings.
    """

    task_text: str

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @abstractmethod
    def start(self, task: Task) -> Reply:
        """Begin the episode of `task`; everything random comes from `task.options["seed"]`."""

    @abstractmethod
    def play(self, command: str) -> Reply:
        """Answer a command, which may be any text. Not called after the end."""

    def close(self) -> None:  # noqa: B027 (most games hold nothing to release)
        """Release what the game holds. May be called again."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """See `TextEnv`. Raises ValueError when `options["task"]` is missing."""
        if not options or "task" not in options:
            raise ValueError(f"reset got options={options!r}; pass the task as options['task']")
        self._score = 0.0
        reply = self.start(Task(**options["task"]))
        return reply.text, self._info(reply)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """See `TextEnv`. The reward is the change of the score."""
        before = self._score
        reply = self.play(action)
        info = self._info(reply)
        self._score = info["score"]
        return reply.text, self._score - before, reply.success or reply.over, False, info

    def _info(self, reply: Reply) -> dict[str, Any]:
        score = FULL_SCORE * reply.success if reply.score is None else float(reply.score)
        info = {"score": score, "success": reply.success, "task_text": self.task_text}
        if reply.actions is not None:
            info["admissible_actions"] = list(reply.actions)
        return info


@dataclass(frozen=True)
class NoOptions:
    """For environments without settings."""


def game_package(
    game: type[TextGame],
    *,
    rules: str,
    options: type = NoOptions,
    task_names: Sequence[str] | None = None,
    list_actions: bool = True,
    check: Callable[[], None] = lambda: None,
    content: Callable[[Any, Task], str | None] | None = None,
) -> EnvPackage[Any]:
    """The package of a game whose tasks are seeds (task lists train, dev, test, train:100).

    `rules`: the system prompt. `options`: a frozen dataclass of settings. `task_names`: the kinds
    of task, `task.name` in `start`; by default one, the game's. `list_actions`: show
    `Reply.actions` in the prompt. `check`, `content`: see `EnvPackage`.

    Raises ValueError when the class cannot be imported by other processes.
    """
    path = f"{game.__module__}:{game.__qualname__}"
    if game.__module__ == "__main__" or "." in game.__qualname__:
        raise ValueError(
            f"'{path}' cannot be imported by the environment processes; define the game at the top "
            "level of a module and name that module in env.env_name"
        )
    return EnvPackage(
        name=path,
        make_env=path,
        options=options,
        prompts=lambda _, action_format: make_prompts(
            rules, action_format, list_actions=list_actions
        ),
        task_sets=SeedTasks(seed_task, task_names or (game.__name__,), content=content),
        check=check,
        content=content,
    )
