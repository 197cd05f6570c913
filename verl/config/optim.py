"""Optimiser and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from verl.config.fields import setting
from verl.utils.errors import UserError
from verl.utils.importing import resolve_choice
from verl.utils.lr_schedules import SCHEDULES


@dataclass
class OptimConfig:
    """AdamW with warm-up and a constant or cosine schedule."""

    lr: float = setting(1e-6, "learning rate after the warm-up", above=0)
    lr_warmup_steps: int = setting(
        -1, "training steps below lr; -1: use lr_warmup_steps_ratio", least=-1
    )
    lr_warmup_steps_ratio: float = setting(
        0.0, "share of the steps in which the model is trained", least=0, most=1
    )
    min_lr_ratio: float = setting(
        0.0, "the cosine schedule ends at lr * min_lr_ratio", least=0, most=1
    )
    num_cycles: float = setting(
        0.5, "half waves of the cosine; 0.5 falls once from lr to the minimum", least=0
    )
    warmup_style: str = setting(
        "constant",
        "what follows the warm-up",
        choices=SCHEDULES,
        open=True,
    )
    weight_decay: float = setting(0.01, "decoupled, as in AdamW", least=0)
    betas: list[float] = setting(
        [0.9, 0.999], "AdamW's averaging of gradients and squares", least=0, below=1, length=2
    )
    grad_clip: float = setting(1.0, "maximum gradient norm", above=0)


def check_optim(key: str, optim: OptimConfig) -> None:
    """Raises UserError on a schedule that is unknown or passes through 0. `key`: of `optim`."""
    resolve_choice(f"{key}.warmup_style", optim.warmup_style, SCHEDULES)
    if optim.warmup_style == "cosine" and optim.num_cycles > 0.5 and optim.min_lr_ratio == 0:
        raise UserError(
            f"{key}.num_cycles={optim.num_cycles} takes the learning rate down to 0 and up again, "
            f"and a step at 0 learns nothing; set {key}.min_lr_ratio above 0 or num_cycles to 0.5"
        )
