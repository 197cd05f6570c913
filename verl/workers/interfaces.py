"""Where other packages plug into the trainer: an entropy term, a hook, an agent's world.

Shapes: B rows of a micro-batch, T response positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class StepContext:
    """What every rank must agree on in one training step. `state` comes from the step hook."""

    step: int  # rollout step k, 0-based
    total_steps: int  # K
    state: Mapping[str, Any] = field(default_factory=dict)


class EntropyRegularizer(Protocol):
    """A differentiable term that replaces the entropy bonus of the actor's loss.

    Called once a micro-batch. The result is a *partial sum*: added up over all micro-batches and
    ranks of a mini-batch it is that mini-batch's term, so that batching never changes the loss. The
    column `trajectory_weight` (B, T) already holds 1 / (trajectories * turns * tokens) of the whole
    mini-batch. The metrics are partial sums in the same sense and are added up.
    """

    required_columns: tuple[str, ...]

    def __call__(
        self,
        entropy_BT: Tensor,
        mask_BT: Tensor,
        columns: Mapping[str, Tensor],
        context: StepContext,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (term to add to the loss, metrics as 0-d tensors, detached)."""
        ...


@dataclass(frozen=True)
class RolloutEntropies:
    """The policy's entropy on one rollout, as the old-log-prob pass measured it (driver side).

    `entropy_BT`, `mask_BT`: (B, T) of all rows, padding rows excluded. `turn_BT`: the turn of each
    active token. `traj_ids_B`: the trajectory of each row.
    """

    entropy_BT: Tensor
    mask_BT: Tensor
    turn_BT: Tensor
    traj_ids_B: np.ndarray


class StepHook(Protocol):
    """Driver-side state of a plugin, saved in every checkpoint."""

    def context_state(self, step: int, total_steps: int) -> Mapping[str, Any]:
        """What the workers need in step `step`; computed from past steps only."""
        ...

    def after_step(self, step: int, observation: RolloutEntropies) -> dict[str, float]:
        """Take in the step's entropies; returns metrics."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Plugin:
    """A regulariser for the workers (picklable) and its hook for the driver."""

    regularizer: EntropyRegularizer
    hook: StepHook


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
