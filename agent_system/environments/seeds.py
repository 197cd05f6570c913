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

    The folds share no seed, and by `content` no game: of "dev" and "test" only those seeds count
    whose game is in no fold before and under no seed before. The seed is in the task's options,
    because training gives `Task.seed` a new value at every draw.
    """

    def __init__(
        self,
        make_task: Callable[[str, str, int], Task],
        names: Sequence[str],
        *,
        environment: str | None = None,
        content: Callable[[Any, Task], str | None] | None = None,
    ) -> None:
        """`make_task`: task name, fold, seed -> the task. `names`: the environment's task names.

        `environment`: what a list in a file has to be for. `content`: as in `EnvPackage`.
        """
        self._make_task = make_task
        self._names = names
        self._environment = environment
        self._content = content

    def __call__(self, options: Any, config: TaskSetConfig) -> list[Task]:
        """The list `config.name`, or the one in that file (*.json), filtered and cut.

        `options` are for `content` alone. Raises ValueError on an unknown list, task name or
        number of seeds.
        """
        if config.name.endswith(".json"):
            return select_tasks(load_task_file(config.name, self._environment), config)
        fold, part = _part(config.name)
        tasks = [task for name in self._names for task in self._fold(options, name, fold, part)]
        return select_tasks(tasks, config)

    def _fold(self, options: Any, name: str, fold: str, part: slice) -> list[Task]:
        tasks = [self._make_task(name, fold, seed) for seed in FOLDS[fold]]
        if self._content is None or fold == "train":
            return tasks[part]
        earlier = list(FOLDS)[: list(FOLDS).index(fold)]
        known = {
            self._content(options, self._make_task(name, before, seed))
            for before in earlier
            for seed in FOLDS[before]
        }
        new = []
        for task in tasks:
            game = self._content(options, task)
            if game is None or game not in known:
                new.append(task)
                known.add(game)
        if part.stop is not None and part.stop > len(new):
            raise ValueError(
                f"{fold} has {len(new)} games of {name} that are not in {' or '.join(earlier)}; "
                f"ask for no more than {fold}:{len(new)}"
            )
        return new[part]


def seed_task(name: str, fold: str, seed: int) -> Task:
    """A task that is only a seed. The fold is left out: no two folds share a seed."""
    return Task(name, {"seed": seed})


def _part(name: str) -> tuple[str, slice]:
    fold, _, count = name.partition(":")
    if fold not in FOLDS:
        raise ValueError(
            f"unknown task list '{name}'; available: {', '.join(FOLDS)}, each also with a number "
            "of seeds (train:100), or a *.json file"
        )
    if not count:
        return fold, slice(None)
    match = _PART.fullmatch(count)
    first, last = (int(match["first"] or 0), int(match["last"])) if match else (0, 0)
    if not first < last <= len(FOLDS[fold]):
        raise ValueError(
            f"task list '{name}' is no part of {fold}; write {fold}:100 for its first 100 seeds or "
            f"{fold}:100-200 for the next 100, up to {len(FOLDS[fold])}"
        )
    return fold, slice(first, last)
