"""The corridor around a reference entropy, and the penalty for leaving it.

Shapes: B rows, T tokens. Entropies in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

# One value for all turns, or one a turn whose last entry stands for every later turn.
Level = float | tuple[float, ...]


@dataclass(frozen=True)
class Corridor:
    """`lower` <= entropy <= `upper` costs nothing."""

    reference: Level
    lower: Level
    upper: Level


def corridor_around(reference: Level, kappa_l: float, kappa_r: float) -> Corridor:
    """[kappa_l * reference, kappa_r * reference]; with kappa_l = 0 there is no floor."""
    return Corridor(reference, _scaled(reference, kappa_l), _scaled(reference, kappa_r))


def _scaled(level: Level, factor: float) -> Level:
    if isinstance(level, tuple):
        return tuple(factor * value for value in level)
    return factor * level


def level_of_tokens(level: Level, turn_BT: Tensor, dtype: torch.dtype) -> Tensor | float:
    """The level of each token: a number, or (B, T). Turns past the last entry share it."""
    if not isinstance(level, tuple):
        return level
    level_S = torch.tensor(level, dtype=dtype, device=turn_BT.device)
    return level_S[turn_BT.clamp(min=0, max=len(level) - 1)]


def relu_penalty(entropy_BT: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    """Distance to the corridor (B, T), the paper's P: gradient -1 below, +1 above, 0 inside."""
    return relu(lower - entropy_BT) + relu(entropy_BT - upper)


def indicator_penalty(entropy_BT: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    """1 outside the corridor, 0 inside (B, T), as in the published code: no gradient."""
    return ((entropy_BT < lower) | (entropy_BT > upper)).to(entropy_BT.dtype)


Penalty = Callable[[Tensor, Tensor | float, Tensor | float], Tensor]

PENALTIES: dict[str, Penalty] = {"relu": relu_penalty, "indicator": indicator_penalty}
