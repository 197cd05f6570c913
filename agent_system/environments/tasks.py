"""Lists of tasks and the order in which training draws from them. Knows no environment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from agent_system.config import TaskSetConfig
from agent_system.environments.task_files import load_task_file, task_list_hash
from agent_system.types import Task

__all__ = ["TaskSampler", "load_task_file", "select_tasks", "task_list_hash"]

MAX_SEED = 2**31

T = TypeVar("T")


def select_tasks(tasks: Sequence[Task], config: TaskSetConfig) -> list[Task]:
    """The tasks of the types `config.tasks`, cut to a seeded subset of `config.max_tasks`.

    The list's order is kept. Raises ValueError on an unknown type and when nothing is left.
    """
    types = sorted({task.name for task in tasks})
    for name in config.tasks or ():
        if name not in types:
            raise ValueError(
                f"unknown task type '{name}' in '{config.name}'; available: {', '.join(types)}"
            )
    chosen = [task for task in tasks if config.tasks is None or task.name in config.tasks]
    if config.max_tasks is not None and config.max_tasks < len(chosen):
        rng = random.Random(config.seed)
        indices = sorted(rng.sample(range(len(chosen)), max(config.max_tasks, 0)))
        chosen = [chosen[index] for index in indices]
    if not chosen:
        raise ValueError(
            f"the task list '{config.name}' is empty with tasks={config.tasks} and "
            f"max_tasks={config.max_tasks}; drop the filter or set max_tasks to at least 1"
        )
    return chosen


class TaskSampler:
    """Draws tasks without replacement, in a new order on every pass over the list.

    `weights`: "uniform_types" draws every task type equally often, whatever the number of its
    variations, and within a type without replacement; "uniform_tasks" every task equally often.
    Each draw gets an episode seed of its own (at least 1), so that an environment with a random
    side shows a known task anew; the draws depend only on the list, `seed`, `weights` and their
    number.
    """

    def __init__(self, tasks: Sequence[Task], seed: int, *, weights: str = "uniform_tasks") -> None:
        """Raises ValueError when `tasks` is empty."""
        if not tasks:
            raise ValueError("no tasks to sample from; check env.train.name and env.train.tasks")
        self._seed = seed
        self._weights = weights
        self._hash = task_list_hash(tasks)
        self._piles: dict[str, list[Task]] = {}
        for task in tasks:
            pile = task.name if weights == "uniform_types" else "all"
            self._piles.setdefault(pile, []).append(task)
        self._names = sorted(self._piles)
        self._orders: dict[str, tuple[int, list[Any]]] = {}
        self._drawn = 0

    def next(self, n: int) -> list[Task]:
        """The next `n` tasks."""
        tasks = [self._task_at(index) for index in range(self._drawn, self._drawn + n)]
        self._drawn += n
        return tasks

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands."""
        return {
            "drawn": self._drawn,
            "task_list_hash": self._hash,
            "weights": self._weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises ValueError when it belongs to other tasks or weights."""
        if state["weights"] != self._weights:
            raise ValueError(
                f"the checkpoint's run drew tasks with env.task_weights={state['weights']}, this "
                f"one with {self._weights}; resume with the same setting"
            )
        if state["task_list_hash"] != self._hash:
            raise ValueError(
                f"the checkpoint's task list {state['task_list_hash']} is not this run's "
                f"{self._hash}; resume with the same env.train settings"
            )
        self._drawn = state["drawn"]

    def _task_at(self, index: int) -> Task:
        # every round draws once from each pile, in a shuffled order of the piles
        round_index, place = divmod(index, len(self._names))
        name = self._order("", self._names, round_index)[place]
        pile = self._piles[name]
        pass_index, place = divmod(round_index, len(pile))
        task = self._order(name, pile, pass_index)[place]
        rng = random.Random(f"{self._seed}/{index}")
        return replace(task, seed=rng.randrange(1, MAX_SEED))

    def _order(self, name: str, items: list[T], pass_index: int) -> list[T]:
        """`items` shuffled for this pass; the latest order of each pile is kept."""
        if self._orders.get(name, (None,))[0] != pass_index:
            rng = random.Random(f"{self._seed}/{name}/{pass_index}")
            self._orders[name] = (pass_index, rng.sample(items, len(items)))
        return self._orders[name][1]
