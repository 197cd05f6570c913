"""Learning-rate schedules: the factor of the optimiser's rate in a training step.

One of the user's own has this signature as well; `config` is the optimiser's (`OptimConfig`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

Schedule = Callable[..., float]


class ScheduleSettings(Protocol):
    """What the schedules here read of the configuration."""

    min_lr_ratio: float
    num_cycles: float


def constant(step: int, *, warmup_steps: int, total_steps: int, config: ScheduleSettings) -> float:
    """Linear warm-up from 0 to 1, then 1. `step` is 0-based."""
    return step / warmup_steps if step < warmup_steps else 1.0


def cosine(step: int, *, warmup_steps: int, total_steps: int, config: ScheduleSettings) -> float:
    """Linear warm-up, then a cosine down to `min_lr_ratio`, which is held.

    `num_cycles` 0.5 is half a wave: 1 right after the warm-up, `min_lr_ratio` at the last step.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    wave = 0.5 * (1.0 + math.cos(2.0 * math.pi * config.num_cycles * progress))
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * wave


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine}
