"""Learning-rate schedules as factors of the optimizer's rate, one call of `step()` an update."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _check_ratio(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value} is a share of the learning rate and must lie in [0, 1]")


def _after_warmup(
    num_warmup_steps: int, init_lr_ratio: float, then: Callable[[int], float]
) -> Callable[[int], float]:
    """Climb linearly from `init_lr_ratio` to 1 in `num_warmup_steps`, then follow `then`."""

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return init_lr_ratio + (1.0 - init_lr_ratio) * step / num_warmup_steps
        return then(step)

    return factor


def _cosine(progress: float, min_lr_ratio: float, num_cycles: float) -> float:
    # num_cycles=0.5 is half a wave: 1 at progress 0, min_lr_ratio at progress 1.
    wave = 0.5 * (1.0 + math.cos(2.0 * math.pi * num_cycles * progress))
    return min_lr_ratio + (1.0 - min_lr_ratio) * wave


def get_constant_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Linear warm-up from 0, then the optimizer's rate."""
    return LambdaLR(optimizer, _after_warmup(num_warmup_steps, 0.0, lambda step: 1.0), last_epoch)


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    min_lr_ratio: float | None = 0.0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    init_lr_ratio: float | None = None,
) -> LambdaLR:
    """Linear warm-up from `init_lr_ratio`, then a cosine down to `min_lr_ratio` of the rate.

    Raises:
        ValueError: a ratio lies outside [0, 1].
    """
    floor, start = min_lr_ratio or 0.0, init_lr_ratio or 0.0
    _check_ratio("min_lr_ratio", floor)
    _check_ratio("init_lr_ratio", start)
    length = max(1, num_training_steps - num_warmup_steps)

    def decay(step: int) -> float:
        return _cosine(min(1.0, (step - num_warmup_steps) / length), floor, num_cycles)

    return LambdaLR(optimizer, _after_warmup(num_warmup_steps, start, decay), last_epoch)


def get_wsd_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    stable_ratio: float = 0.9,
) -> LambdaLR:
    """Warm-up, stable, decay (MiniCPM, arXiv 2404.06395): the cosine starts late.

    `stable_ratio` of the steps after the warm-up run at the full rate.

    Raises:
        ValueError: a ratio lies outside [0, 1], or the warm-up is longer than the training.
    """
    _check_ratio("min_lr_ratio", min_lr_ratio)
    _check_ratio("stable_ratio", stable_ratio)
    if num_training_steps <= 0:
        raise ValueError(f"num_training_steps={num_training_steps} must be positive")
    if num_warmup_steps > num_training_steps:
        raise ValueError(
            f"num_warmup_steps={num_warmup_steps} exceeds num_training_steps={num_training_steps}"
        )
    stable_steps = int((num_training_steps - num_warmup_steps) * stable_ratio)
    decay_start = num_warmup_steps + stable_steps
    length = num_training_steps - decay_start

    def stable_then_decay(step: int) -> float:
        if step < decay_start or length == 0:
            return 1.0
        return _cosine(min(1.0, (step - decay_start) / length), min_lr_ratio, num_cycles)

    factor = _after_warmup(num_warmup_steps, 0.0, stable_then_decay)
    return LambdaLR(optimizer, factor, last_epoch)
