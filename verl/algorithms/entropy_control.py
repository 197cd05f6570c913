"""What an entropy control is: a term of the actor's loss, and the state it keeps between steps.

EPO (`epo.plugin:CONTROL`) is one; docs/extending.md shows how to write another.
Shapes: B rows of a micro-batch, T response positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

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
    """Driver-side state of a plugin, saved in every checkpoint.

    A subclass inherits the answers of a hook that keeps no state.
    """

    def context_state(self, step: int, total_steps: int) -> Mapping[str, Any]:
        """What the workers need in step `step`; computed from past steps only."""
        return {}

    def after_step(self, step: int, observation: RolloutEntropies) -> dict[str, float]:
        """Take in the step's entropies; returns metrics."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""


@dataclass(frozen=True)
class Plugin:
    """A regulariser for the workers and its hook for the driver.

    The regulariser is pickled: the module of its class has to import in every Ray worker.
    """

    regularizer: EntropyRegularizer
    hook: StepHook


@runtime_checkable
class EntropyControl(Protocol):
    """What `algorithm.entropy_control.name` names: the options it brings along, and its build."""

    options: type  # a dataclass of plain values, the schema of `algorithm.entropy_control.options`

    def validate(self, options: Any) -> None:
        """Raises ValueError with one sentence that says what to change."""
        ...

    def build(self, options: Any) -> Plugin: ...
