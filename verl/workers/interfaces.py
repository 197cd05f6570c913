"""Where the agent's side meets the trainer: its world, seen from the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class TaskSet:
    """A fixed list of tasks to validate on, as episodes. `hash` identifies the list."""

    name: str
    episodes: list[Any]
    hash: str


class AgentWorld(Protocol):
    """The agent's side of the trainer, on the driver: tasks in, rows out.

    The trainer knows nothing else of environments. The configuration names the import path.
    """

    worker_class: type  # the rollout worker, started as a Ray actor

    def check(self) -> None:
        """Raises UserError when the environment cannot run here or a task list is empty."""
        ...

    def train_episodes(self, count: int, group_size: int) -> list[Any]:
        """`count` tasks, each played by `group_size` episodes that share a uid."""
        ...

    def validation_sets(self) -> list[TaskSet]: ...

    def task_lists(self) -> dict[str, Any]:
        """A JSON-able account: `train_tasks`, and `validation_sets` by name.

        Each has the list's name, version, hash and its number of tasks n, a validation set also
        `in_training`: how many of its tasks are trained on.
        """
        ...

    def sampling(self, mode: str) -> Any:
        """`train`, `sampled` or `greedy`."""
        ...

    def to_data_proto(self, trajectories: list[Any]) -> Any:
        """The rows of one rollout (columns: see `agent_system.adapters.rows`)."""
        ...

    def metrics(self, trajectories: list[Any]) -> dict[str, float]: ...

    def record(self, trajectory: Any) -> dict[str, Any]:
        """A JSON-able account of one trajectory."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
