"""A rate and its interval, by hand."""

import math
import random

import pytest

from verl.trainer.ppo.statistics import success_interval, wilson_interval


def test_wilson_interval_by_hand():
    # p = 0.8, n = 10, z = 2: centre (0.8 + 0.2) / 1.4, half 2 * sqrt(0.016 + 0.01) / 1.4
    low, high = wilson_interval(8, 10, z=2.0)
    half = 2 * math.sqrt(0.026) / 1.4
    assert low == pytest.approx(1 / 1.4 - half)
    assert high == pytest.approx(1 / 1.4 + half)


def test_wilson_interval_at_the_edges():
    # 0 of n: low 0, high z^2/n / (1 + z^2/n) = 4/10 / 1.4
    assert wilson_interval(0, 10, z=2.0) == pytest.approx((0.0, 0.4 / 1.4), abs=1e-12)
    assert wilson_interval(10, 10, z=2.0) == pytest.approx((1 - 0.4 / 1.4, 1.0))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for successes, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="between 0 and n"):
            wilson_interval(successes, n)


def outcomes(*solved_by_task):
    return [(task, bool(s)) for task, solved in enumerate(solved_by_task) for s in solved]


def test_repeats_of_a_task_that_end_alike_count_once():
    # 20 tasks, 16 equal episodes of each: as sure as 10 of 20, not as 160 of 320
    repeated = success_interval(outcomes(*[[1] * 16] * 10, *[[0] * 16] * 10))
    assert repeated == pytest.approx(wilson_interval(10, 20))
    assert repeated == pytest.approx((0.299, 0.701), abs=1e-3)
    always = success_interval(outcomes(*[[1] * 16] * 20))
    assert always == pytest.approx(wilson_interval(20, 20))


def test_one_episode_a_task_is_wilson():
    assert success_interval(outcomes(*[[1]] * 8, [0], [0])) == pytest.approx(wilson_interval(8, 10))
    assert success_interval([]) == (0.0, 1.0)


def test_episodes_that_differ_within_a_task_count_in_part_by_hand():
    # With the two added tasks 2 2 1 0 of 2 each: p = 5/8, residuals .75 .75 -.25 -1.25, so
    # deff = (.5625 + .5625 + .0625 + 1.5625) / (8 * 15/64) = 2.75 / 1.875 = 22/15: 4 count as 30/11
    partly = success_interval(outcomes([1, 1], [1, 0]))
    assert partly == pytest.approx(wilson_interval(0.75 * 30 / 11, 30 / 11))
    # 1 2 1 0 of 2: p = 1/2, deff = (1 + 1) / (8 * 1/4) = 1: as if independent
    assert success_interval(outcomes([1, 0], [0, 1])) == pytest.approx(wilson_interval(2, 4))


def test_the_interval_covers_the_rate_of_tasks_that_differ():
    # Tasks are always (half of them) or never solved: of the intervals for 20 such tasks, 95% hold
    # 1/2; intervals for 320 independent episodes would in 4 of 10 cases
    rng = random.Random(0)
    held = 0
    for _ in range(300):
        rates = [rng.choice((0.02, 0.98)) for _ in range(20)]
        played = [[rng.random() < rate for _ in range(16)] for rate in rates]
        low, high = success_interval(outcomes(*played))
        held += low <= 0.5 <= high
    assert held / 300 > 0.92
