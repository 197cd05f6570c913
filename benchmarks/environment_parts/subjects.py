"""What is measured: the environments of the presets, with tasks and commands for them."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from agent_system.config import EnvConfig, TaskSetConfig
from agent_system.environments.registry import BoundEnv, get_env_package
from agent_system.interfaces import AsyncEnv
from agent_system.types import Observation, Task
from verl.config.compose import compose_config

# --env -> the choice of `env=`
PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "sciworld": "sciworld",
        "sciworld_low_memory": "sciworld_low_memory",
        "alfworld": "alfworld",
        "textworld_express": "textworld_express",
        "gymnasium": "frozen_lake",
        "custom": "custom_env",
    }
)
_LOOPS = "environment_parts.package_loops"
BASELINES: Mapping[str, str] = MappingProxyType(
    {
        "sciworld": f"{_LOOPS}:ScienceWorldLoop",
        "alfworld": f"{_LOOPS}:AlfWorldLoop",
        "textworld_express": f"{_LOOPS}:TextWorldExpressLoop",
        "gymnasium": f"{_LOOPS}:GymnasiumLoop",
    }
)
# Short and long games, with and without fluids, circuits and animals.
SCIWORLD_TASKS = (
    "boil",
    "chemistry-mix",
    "find-animal",
    "find-plant",
    "identify-life-stages-2",
    "lifespan-longest-lived",
    "power-component",
    "use-thermometer",
)
ALFWORLD_GAMES = 12  # two of each type


@dataclass(frozen=True)
class Subject:
    """An environment to measure.

    `paths`: the commands to play, by task key; random admissible ones in the other tasks.
    `baseline`: import path of the package's own loop as a `TextEnv`, "" where there is none.
    """

    name: str
    env: BoundEnv[Any]
    tasks: Sequence[Task]
    max_steps: int
    baseline: str = ""
    paths: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def command(
        self, task: Task, observation: Observation, index: int, rng: random.Random
    ) -> str | None:
        """Command number `index` of an episode; None: there is no more to play."""
        path = self.paths.get(task.key)
        if path is None:
            return rng.choice(observation.admissible_actions) if index < self.max_steps else None
        return path[index] if index < min(len(path), self.max_steps) else None


def playable() -> tuple[list[str], list[str]]:
    """Names of the environments that run here, and why the others do not."""
    names, reasons = [], []
    for name in PRESETS:
        try:
            get_env_package(_preset(name).env_name).check()
            names.append(name)
        except ValueError as error:
            reasons.append(f"Left out: {name} ({error}).")
    return names, reasons


@contextmanager
def open_subject(name: str) -> Iterator[Subject]:
    """The subject `name`; the games that are made for it last as long as the block."""
    config = _preset(name)
    package, options = get_env_package(config.env_name), dict(config.options)
    package.check()
    with TemporaryDirectory(prefix="environments-") as folder:
        if name == "alfworld":
            _generate_games(folder)
            options["data_dir"] = folder
        env = package.bind(options)
        tasks = _tasks(name, env)
        yield Subject(
            name,
            env,
            tasks,
            config.max_steps,
            BASELINES.get(name, ""),
            _sciworld_paths(tasks) if name.startswith("sciworld") else {},
        )


async def play(
    env: AsyncEnv, subject: Subject, task: Task, rng: random.Random
) -> AsyncIterator[str]:
    """One episode; yields each command when it has been answered."""
    observation, _ = await env.reset(task)
    index = 0
    while (command := subject.command(task, observation, index, rng)) is not None:
        result = await env.step(command)
        yield command
        if result.terminated or result.truncated:
            return
        observation, index = result.observation, index + 1


def _preset(name: str) -> EnvConfig:
    _, config = compose_config([f"env={PRESETS[name]}", "actor_rollout_ref.model.path=small"])
    return config.env


def _tasks(name: str, env: BoundEnv[Any]) -> list[Task]:
    if name.startswith("sciworld"):
        configs = [TaskSetConfig("all_test", [task]) for task in SCIWORLD_TASKS]
        return [env.tasks(config)[0] for config in configs]
    lists = {"alfworld": "train", "textworld_express": "test:3"}
    return env.tasks(TaskSetConfig(lists.get(name, "test:16")))


def _sciworld_paths(tasks: Sequence[Task]) -> dict[str, list[str]]:
    # its simulator takes longer to list the commands than to play one: it plays its own solutions
    from agent_system.environments.env_package.sciworld.gold import gold_paths

    return gold_paths(tasks)


def _generate_games(folder: str) -> None:
    # by a process of its own: the simulator's planner changes this one's sys.argv
    module = "agent_system.environments.env_package.alfworld.generate"
    counts = ["--games", str(ALFWORLD_GAMES), "--valid_games", "0"]
    subprocess.run([sys.executable, "-m", module, "--out", folder, *counts], check=True)
