"""ScienceWorld's steps: the package's own `env.step` beside the environment of this project.

The package computes a look, the inventory and all valid actions at every step; the environment asks
the simulator only for what the prompt uses. Both play the same commands of the same games, in turn,
step by step, so that whatever else the machine does slows both alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_system.config import TaskSetConfig
from agent_system.environments.env_package.java import find_java
from agent_system.environments.env_package.sciworld.env import SciWorldEnv
from agent_system.environments.env_package.sciworld.gold import gold_paths
from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.env_package.sciworld.simulator import JAVA_REMEDY
from agent_system.environments.env_package.sciworld.tasks import sciworld_tasks
from agent_system.types import Task

# Short and long games, with and without fluids, circuits and animals.
TASKS = (
    "boil",
    "chemistry-mix",
    "find-animal",
    "find-plant",
    "identify-life-stages-2",
    "lifespan-longest-lived",
    "power-component",
    "use-thermometer",
)
NO_LIMIT = 1_000_000  # the package ends episodes by itself after so many moves


@dataclass(frozen=True)
class StepSpeed:
    """Seconds that `steps` equal steps took."""

    steps: int
    package_s: float
    lean_s: float

    @property
    def package_steps_per_s(self) -> float:
        return self.steps / self.package_s

    @property
    def lean_steps_per_s(self) -> float:
        return self.steps / self.lean_s

    @property
    def ratio(self) -> float:
        """How many times as fast as the package."""
        return self.package_s / self.lean_s


def step_speed(
    task_names: Sequence[str] = TASKS,
    *,
    steps_per_task: int = 20,
    options: SciWorldOptions | None = None,
) -> StepSpeed:
    """Play the gold path of each task's first test variation, `steps_per_task` commands of it.

    `options`: of the lean environment; its simplification is also the package's.
    """
    options = options or SciWorldOptions()
    tasks = [sciworld_tasks(TaskSetConfig("all_test", [name]))[0] for name in task_names]
    paths = gold_paths(tasks, options.simplification)
    package, lean = _package_env(), SciWorldEnv(options)
    speed = StepSpeed(0, 0.0, 0.0)
    try:
        for task in tasks:
            _start(package, task, options.simplification)
            lean.reset(options={"task": {"options": task.options}})
            for command in paths[task.key][:steps_per_task]:
                package_s, lean_s = _seconds(package.step, command), _seconds(lean.step, command)
                speed = StepSpeed(
                    speed.steps + 1, speed.package_s + package_s, speed.lean_s + lean_s
                )
    finally:
        package.close()
        lean.close()
    return speed


def _package_env() -> Any:
    from scienceworld import ScienceWorldEnv

    # the package starts whatever `java` is first on the path
    java_folder = str(Path(find_java(JAVA_REMEDY)).parent)
    os.environ["PATH"] = os.pathsep.join([java_folder, os.environ["PATH"]])
    return ScienceWorldEnv("", None, envStepLimit=NO_LIMIT)


def _start(package: Any, task: Task, simplification: str) -> None:
    package.load(task.options["task_name"], task.options["variation"], simplification)
    package.reset()


def _seconds(step: Callable[[str], Any], command: str) -> float:
    start = time.perf_counter()
    step(command)
    return time.perf_counter() - start
