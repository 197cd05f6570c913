"""Optimiser and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class OptimConfig:
    """AdamW with warm-up and a constant or cosine schedule."""

    lr: float = 1e-6  # learning rate after the warm-up
    lr_warmup_steps: int = -1  # training steps; -1: use lr_warmup_steps_ratio
    lr_warmup_steps_ratio: float = 0.0  # share of the training steps
    min_lr_ratio: float = 0.0  # the cosine schedule ends at lr * min_lr_ratio
    num_cycles: float = 0.5  # half waves of the cosine; 0.5 falls once from lr to the minimum
    # what follows the warm-up: constant | cosine, or the import path of your own,
    # package.module:function
    warmup_style: str = "constant"
    weight_decay: float = 0.01  # decoupled, as in AdamW
    # AdamW's averaging of gradients and squares
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    grad_clip: float = 1.0  # maximum gradient norm
