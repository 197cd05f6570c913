"""Where the agent's side meets the trainer.

The trainer starts rollout workers and hands episodes, sampling settings and trajectories on; what
it reads of them stands here. All else in them is between a world and its workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from verl import DataProto
from verl.config.plan import RunPlan
from verl.config.root import PPOConfig
from verl.workers.rollout.base import SamplingSettings
from verl.workers.weight_sync import WeightUpdate


class Task(Protocol):
    """`name`: the type of task, by which success is told apart."""

    @property
    def name(self) -> str: ...


class Episode(Protocol):
    """A request to play a task once; a dataclass. Those of one `uid` form a group."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def task(self) -> Task: ...
    @property
    def uid(self) -> str: ...
    @property
    def traj_uid(self) -> str: ...


class Trajectory(Protocol):
    """A finished episode. `reason` is "env_error" where the environment failed; `score` 0-100;
    `info` has `lenient_success`, the published code's idea of it."""

    @property
    def episode(self) -> Episode: ...
    @property
    def reason(self) -> str: ...
    @property
    def success(self) -> bool: ...
    @property
    def score(self) -> float: ...
    @property
    def num_turns(self) -> int: ...
    @property
    def info(self) -> Mapping[str, Any]: ...


class RolloutWorker(Protocol):
    """Engine and environments in one process: the trainer starts it as a Ray actor.

    Its methods are described at `agent_system.adapters.rollout_worker.RolloutWorker`. Episodes and
    sampling settings are those of its own world. `cancel` is called while `collect` runs: so none
    of them is a coroutine, or Ray lets a call that waits for its turn hold up those behind it.
    """

    def __init__(self, config: PPOConfig, plan: RunPlan, rank: int) -> None: ...
    def start(self, weights: WeightUpdate | None = None) -> None: ...
    def update_weights(self, update: WeightUpdate) -> None: ...
    def transfer(self, stage: str, payload: Any) -> bool: ...
    def score(self, rows: list[list[int]]) -> list[list[float]] | None: ...
    def differing_weights(self) -> list[str] | None: ...
    def sleep(self) -> None: ...
    def load_ahead(self, episodes: list[Any]) -> None: ...
    def collect(self, episodes: list[Any], sampling: Any, seed: int) -> Iterator[Trajectory]: ...
    def cancel(self) -> None: ...
    def stats(self) -> dict[str, float]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class TaskSet:
    """A fixed list of tasks to validate on, as episodes. `hash` identifies the list."""

    name: str
    episodes: Sequence[Episode]
    hash: str


T = TypeVar("T", bound=Trajectory)


class AgentWorld(Protocol[T]):
    """The agent's side of the trainer, on the driver: tasks in, rows out.

    The trainer knows nothing else of environments. The configuration names the import path of a
    function of the configuration that makes one. `T`: the trajectories that its workers play.
    """

    worker_class: ClassVar[type[RolloutWorker]]

    def check(self) -> None:
        """Raises UserError when the environment cannot run here or a task list is empty."""
        ...

    def train_episodes(self, count: int, group_size: int) -> Sequence[Episode]:
        """`count` tasks, each played by `group_size` episodes that share a uid."""
        ...

    def validation_sets(self) -> list[TaskSet]: ...

    def task_lists(self) -> dict[str, Any]:
        """A JSON-able account: `train_tasks`, and `validation_sets` by name.

        Each has the list's name, version, hash and its number of tasks n, a validation set also
        `in_training`: how many of its tasks are trained on, under the same key or another.
        """
        ...

    def sample_prompts(self, count: int, date: str) -> list[list[int]]:
        """Prompts as this run writes them, as tokens; the same at every call.

        `date`: the `chat_date` of the run's plan, which its rollout workers write.
        """
        ...

    def sampling(self, mode: str) -> SamplingSettings:
        """`train`, `sampled` or `greedy`."""
        ...

    def to_data_proto(self, trajectories: list[T]) -> DataProto:
        """The rows of one rollout (columns: see `verl.protocol.columns`)."""
        ...

    def metrics(self, trajectories: list[T]) -> dict[str, float]: ...

    def record(self, trajectory: T) -> dict[str, Any]:
        """A JSON-able account of one trajectory."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
