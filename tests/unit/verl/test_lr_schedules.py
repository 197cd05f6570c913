"""Learning rates step by step, by hand."""

import pytest
import torch

from verl.utils.torch_functional import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_wsd_schedule_with_warmup,
)


def new_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates(make, steps: int, **kwargs) -> list[float]:
    optimizer = new_optimizer()
    scheduler = make(optimizer, **kwargs)
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant():
    assert rates(get_constant_schedule_with_warmup, 5, num_warmup_steps=2) == [0, 0.5, 1, 1, 1]
    assert rates(get_constant_schedule_with_warmup, 2, num_warmup_steps=0) == [1, 1]


def test_cosine():
    # After 2 of 5 steps: progress 0, 1/3, 2/3, 1, held; waves 1, 0.75, 0.25, 0
    # floor 0.1: 0.1 + 0.9 * wave
    seen = rates(
        get_cosine_schedule_with_warmup, 7,
        num_warmup_steps=2, num_training_steps=5, min_lr_ratio=0.1,
    )  # fmt: skip
    assert seen == pytest.approx([0, 0.5, 1, 0.775, 0.325, 0.1, 0.1])


def test_cosine_may_start_above_zero():
    seen = rates(
        get_cosine_schedule_with_warmup, 3,
        num_warmup_steps=2, num_training_steps=5, init_lr_ratio=0.2,
    )  # fmt: skip
    assert seen == pytest.approx([0.2, 0.6, 1])


def test_wsd():
    # 2 warm-up, 0.5 * 8 = 4 stable, decay over 4: waves at 1/4, 1/2, 3/4, 1 are
    # 0.5(1+cos 45) = 0.85355, 0.5, 0.14645, 0; with floor 0.1: 0.1 + 0.9 * wave
    seen = rates(
        get_wsd_schedule_with_warmup, 11,
        num_warmup_steps=2, num_training_steps=10, min_lr_ratio=0.1, stable_ratio=0.5,
    )  # fmt: skip
    assert seen == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.8681981, 0.55, 0.2318019, 0.1])


def test_wsd_without_decay_and_without_a_stable_phase():
    arguments = {"num_warmup_steps": 2, "num_training_steps": 10}
    assert rates(get_wsd_schedule_with_warmup, 12, stable_ratio=1.0, **arguments)[2:] == [1] * 10
    assert rates(get_wsd_schedule_with_warmup, 10, stable_ratio=0.0, **arguments) == pytest.approx(
        rates(get_cosine_schedule_with_warmup, 10, **arguments)
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"num_training_steps": 0},
        {"num_warmup_steps": 11},
        {"stable_ratio": 1.1},
        {"stable_ratio": -0.1},
        {"min_lr_ratio": 1.1},
    ],
)
def test_wsd_refuses(bad):
    arguments = {"num_warmup_steps": 2, "num_training_steps": 10} | bad
    with pytest.raises(ValueError, match=next(iter(bad))):
        get_wsd_schedule_with_warmup(new_optimizer(), **arguments)


def test_cosine_refuses_a_ratio_above_one():
    with pytest.raises(ValueError, match="min_lr_ratio=2"):
        get_cosine_schedule_with_warmup(new_optimizer(), 1, 5, min_lr_ratio=2)
