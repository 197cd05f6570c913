"""ScienceWorld's own solutions of its tasks, for cloning and for tests."""

from __future__ import annotations

from collections.abc import Sequence

from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.env_package.sciworld.simulator import Simulator
from agent_system.types import Task


def gold_paths(tasks: Sequence[Task], simplification: str = "easy") -> dict[str, list[str]]:
    """Commands that win each task, by its key; half a second each, a few take over 20 s.

    They are in the simulator's own words, and drawn anew at every call. Not every one wins (119 of
    120 did): keep those whose replay does. In a pool, the option `gold_path` adds them to a reset.
    Raises ValueError when a task is not one of the simulator's.
    """
    simulator = Simulator(SciWorldOptions(simplification, gold_path=True))
    try:
        return {task.key: _gold_path(simulator, task) for task in tasks}
    finally:
        simulator.close()


def _gold_path(simulator: Simulator, task: Task) -> list[str]:
    simulator.start(task.options["task_name"], task.options["variation"])
    return simulator.gold_path()
