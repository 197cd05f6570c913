"""Task lists of environments whose tasks are seeds: a name, a fold and a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from agent_system.config import TaskSetConfig
from agent_system.environments.tasks import load_task_file, select_tasks
from agent_system.types import Task

FOLDS: Mapping[str, range] = MappingProxyType(
    {
        "train": range(0, 1_000),
        "dev": range(10_000, 11_000),
        "test": range(20_000, 21_000),
    }
)


class SeedTasks:
    """`task_sets` of an `EnvPackage`: "train", "dev", "test", "test:50" (50 seeds of each name).

    The folds share no seed. The seed is in the task's options, because training gives `Task.seed`
    a new value at every draw.
    """

    def __init__(self, make_task: Callable[[str, str, int], Task], names: Sequence[str]) -> None:
        """`make_task`: task name, fold, seed -> the task. `names`: the environment's task names."""
        self._make_task = make_task
        self._names = names

    def __call__(self, config: TaskSetConfig) -> list[Task]:
        """The list `config.name`, or the one in that file (*.json), filtered and cut.

        Raises ValueError on an unknown list, task name or number of seeds.
        """
        if config.name.endswith(".json"):
            return select_tasks(load_task_file(config.name), config)
        fold, seeds = _seeds(config.name)
        tasks = [self._make_task(name, fold, seed) for name in self._names for seed in seeds]
        return select_tasks(tasks, config)


def seed_task(name: str, fold: str, seed: int) -> Task:
    """A task that is only a seed. The fold is left out: no two folds share a seed."""
    return Task(name, {"seed": seed})


def _seeds(name: str) -> tuple[str, range]:
    fold, _, count = name.partition(":")
    if fold not in FOLDS:
        raise ValueError(
            f"unknown task list '{name}'; available: {', '.join(FOLDS)}, each also with a number "
            "of seeds (train:100), or a *.json file"
        )
    if not count:
        return fold, FOLDS[fold]
    if not count.isascii() or not count.isdigit() or not 1 <= int(count) <= len(FOLDS[fold]):
        raise ValueError(f"task list '{name}': the number of seeds is 1 to {len(FOLDS[fold])}")
    return fold, FOLDS[fold][: int(count)]
