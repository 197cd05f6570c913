"""AdamW's settings and the learning-rate schedule."""

import math

import pytest
import torch

from verl.config.optim import OptimConfig
from verl.utils.errors import UserError
from verl.workers.optimizer import build_optimizer, build_schedule, warmup_length


def rates(config, total_steps, count):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer([parameter], config)
    schedule = build_schedule(optimizer, config, total_steps)
    result = []
    for _ in range(count):
        result.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return result


def test_constant():
    assert rates(OptimConfig(lr=0.5), 10, 3) == [0.5, 0.5, 0.5]


def test_warmup_by_steps_goes_before_the_ratio():
    config = OptimConfig(lr=1.0, lr_warmup_steps=2, lr_warmup_steps_ratio=0.9)
    assert rates(config, 10, 4) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_warmup_by_ratio():
    # 0.25 of 8 steps is 2
    assert warmup_length(OptimConfig(lr_warmup_steps_ratio=0.25), 8) == 2


def test_cosine_falls_to_the_minimum():
    config = OptimConfig(lr=1.0, warmup_style="cosine", min_lr_ratio=0.2)
    # at the middle cos(pi/2) = 0: 0.2 + 0.8 * 0.5 = 0.6; at the end 0.2
    got = rates(config, 4, 5)
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))
    assert got == pytest.approx([1.0, quarter, 0.6, 0.2 + 0.8 * (1 - (quarter - 0.2) / 0.8), 0.2])


def test_frozen_parameters_are_left_out_and_settings_arrive():
    trained = torch.nn.Parameter(torch.zeros(2))
    frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    config = OptimConfig(lr=0.1, betas=[0.8, 0.95], weight_decay=0.3)
    (group,) = build_optimizer([trained, frozen], config).param_groups
    assert [id(p) for p in group["params"]] == [id(trained)]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.1, (0.8, 0.95), 0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"grad_clip": 0.0}, "grad_clip=0.0"),
        (
            {"warmup_style": "linear"},
            "warmup_style=linear is unknown; available: constant, cosine",
        ),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        rates(OptimConfig(**options), 10, 1)
