"""Learning-rate schedules: the factor of the optimiser's rate in a training step.

Steps are those in which the model is trained, 0-based; `total_steps` is how many there will be.
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
    """Linear warm-up, then 1: the first step after the warm-up is the first one at 1."""
    return min(1.0, (step + 1) / (warmup_steps + 1))  # above 0: a step at 0 would learn nothing


def cosine(step: int, *, warmup_steps: int, total_steps: int, config: ScheduleSettings) -> float:
    """Linear warm-up, then a cosine towards `min_lr_ratio`.

    `num_cycles` 0.5 is half a wave: 1 right after the warm-up, `min_lr_ratio` after the last step.
    """
    if step < warmup_steps:
        return constant(step, warmup_steps=warmup_steps, total_steps=total_steps, config=config)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    wave = 0.5 * (1.0 + math.cos(2.0 * math.pi * config.num_cycles * progress))
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * wave


SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine}
