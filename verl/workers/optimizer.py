"""AdamW and its learning-rate schedule. The schedule counts training steps, not optimiser steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from verl.config.optim import OptimConfig
from verl.utils.errors import UserError
from verl.utils.importing import resolve_choice
from verl.utils.lr_schedules import SCHEDULES, Schedule


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> AdamW:
    """AdamW over the trainable parameters, weight decay on all of them.

    Raises:
        UserError: a value that no update could use.
    """
    if config.lr <= 0 or config.grad_clip <= 0:
        raise UserError(
            f"optim.lr={config.lr} and optim.grad_clip={config.grad_clip} must be larger than 0; "
            "a large grad_clip such as 1e9 switches clipping off"
        )
    return AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        fused=True,
    )


def build_schedule(optimizer: AdamW, config: OptimConfig, total_steps: int) -> LambdaLR:
    """The schedule `warmup_style` over `total_steps` training steps.

    Raises:
        UserError: unknown `warmup_style`.
    """
    schedule: Schedule = resolve_choice("optim.warmup_style", config.warmup_style, SCHEDULES)
    warmup_steps = warmup_length(config, total_steps)

    def factor(step: int) -> float:
        return schedule(step, warmup_steps=warmup_steps, total_steps=total_steps, config=config)

    return LambdaLR(optimizer, factor)


def resume_schedule(schedule: LambdaLR, saved: Mapping[str, Any]) -> None:
    """Continue at the training step of `saved`, a state of such a schedule.

    The rates are those of the present configuration: a run may go on with another learning rate.
    """
    rates = [
        rate * factor(saved["last_epoch"])
        for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    schedule.load_state_dict({**saved, "base_lrs": schedule.base_lrs, "_last_lr": rates})
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def warmup_length(config: OptimConfig, total_steps: int) -> int:
    """Training steps of warm-up: `lr_warmup_steps` when it is not negative, else its ratio."""
    if config.lr_warmup_steps >= 0:
        return config.lr_warmup_steps
    return int(config.lr_warmup_steps_ratio * total_steps)
