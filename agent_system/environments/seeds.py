"""Task lists of environments whose tasks are seeds: a name, a fold and a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

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


_PART = re.compile(r"((?P<first>[0-9]{1,6})-)?(?P<last>[0-9]{1,6})")


class SeedTasks:
    """`task_sets` of an `EnvPackage`: "train", "dev" and "test", also in part.

    "test:50" has the first 50 seeds of the fold for each task name, "train:900-1000" its seeds from
    number 900 up to, not including, number 1,000.

    The folds share no seed. The seed is in the task's options, because training gives `Task.seed`
    a new value at every draw.
    """

    def __init__(
        self,
        make_task: Callable[[str, str, int], Task],
        names: Sequence[str],
        *,
        environment: str | None = None,
    ) -> None:
        """`make_task`: task name, fold, seed -> the task. `names`: the environment's task names.

        `environment`: what a list in a file has to be for.
        """
        self._make_task = make_task
        self._names = names
        self._environment = environment

    def __call__(self, options: Any, config: TaskSetConfig) -> list[Task]:
        """The list `config.name`, or the one in that file (*.json), filtered and cut.

        `options` change nothing in it. Raises ValueError on an unknown list, task name or number of
        seeds.
        """
        if config.name.endswith(".json"):
            return select_tasks(load_task_file(config.name, self._environment), config)
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
    match = _PART.fullmatch(count)
    first, last = (int(match["first"] or 0), int(match["last"])) if match else (0, 0)
    if not first < last <= len(FOLDS[fold]):
        raise ValueError(
            f"task list '{name}' is no part of {fold}; write {fold}:100 for its first 100 seeds or "
            f"{fold}:100-200 for the next 100, up to {len(FOLDS[fold])}"
        )
    return fold, FOLDS[fold][first:last]
