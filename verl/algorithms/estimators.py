"""Advantage estimators by name: what the trainer hands to one, and what one states of itself.

An estimator is called with keyword arguments, those of `INPUTS` that it takes by name or in its
`**_`, and returns (advantages, returns), both (B, T). Whatever it takes without a default it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Estimator = Callable[..., tuple[Tensor, Tensor]]
Function = TypeVar("Function", bound=Callable)

INPUTS = (
    "token_level_rewards",  # (B, T)
    "response_mask",  # (B, T)
    "values",  # (B, T), where the estimator needs them: then there is a critic
    "index",  # (B,) the task of each row: its group
    "traj_index",  # (B,) the trajectory of each row
    "turn_index",  # (B,) the place of the row in its trajectory
    "gamma",
    "lam",
    "norm_adv_by_std_in_grpo",
    "config",  # algorithm.*
)

ESTIMATORS: dict[str, Estimator] = {}
_COMPARES = "compares_episodes"


def estimator(*names: str, compares_episodes: bool = False) -> Callable[[Function], Function]:
    """Decorator: an estimator of these names (none: it is chosen by import path).

    `compares_episodes`: an episode is judged by the others of its task. A group then needs at least
    two, and one that an environment's failure left alone teaches nothing.

    Raises:
        ValueError: a name belongs to another function.
    """

    def add(function: Function) -> Function:
        setattr(function, _COMPARES, compares_episodes)
        for name in names:
            if ESTIMATORS.setdefault(name, function) is not function:
                raise ValueError(
                    f"advantage estimator '{name}' is already registered as {ESTIMATORS[name]!r}; "
                    "choose another name"
                )
        return function

    return add


def compares_episodes(function: Estimator) -> bool:
    """What the decorator states; False without one."""
    return getattr(function, _COMPARES, False)


def needed_inputs(function: Estimator) -> set[str]:
    """The arguments without a default."""
    parameters: Any = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
