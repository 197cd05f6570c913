"""Factors of the learning rate step by step, by hand."""

import pytest

from verl.config.optim import OptimConfig
from verl.utils.lr_schedules import SCHEDULES, constant, cosine


def factors(schedule, steps, *, warmup_steps, total_steps=5, **settings):
    config = OptimConfig(**settings)
    return [
        schedule(step, warmup_steps=warmup_steps, total_steps=total_steps, config=config)
        for step in range(steps)
    ]


def test_constant():
    assert factors(constant, 5, warmup_steps=2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert factors(constant, 2, warmup_steps=0) == [1, 1]


def test_cosine():
    # After 2 of 5 steps: progress 0, 1/3, 2/3, 1, held; waves 1, 0.75, 0.25, 0
    # floor 0.1: 0.1 + 0.9 * wave
    seen = factors(cosine, 7, warmup_steps=2, min_lr_ratio=0.1)
    assert seen == pytest.approx([1 / 3, 2 / 3, 1, 0.775, 0.325, 0.1, 0.1])


def test_a_whole_wave_comes_back_up():
    # progress 0, 1/4, 1/2, 3/4, 1 of one cycle: cos of 0, 90, 180, 270, 360 degrees
    seen = factors(cosine, 5, warmup_steps=0, total_steps=4, num_cycles=1.0)
    assert seen == pytest.approx([1, 0.5, 0, 0.5, 1])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 10])
def test_no_step_trains_at_0(name, warmup_steps):
    # a warm-up ratio of 0.1 of 10 steps is the warm-up of 1 step
    seen = factors(SCHEDULES[name], 10, warmup_steps=warmup_steps, total_steps=10)
    assert min(seen) > 0
    assert max(seen, default=0) == (1 if warmup_steps < 10 else 10 / 11)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warmup_as_long_as_the_run_never_divides_by_zero(name):
    assert factors(SCHEDULES[name], 6, warmup_steps=5)[-1] == 1.0
