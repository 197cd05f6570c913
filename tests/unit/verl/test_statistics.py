"""A rate and its interval, by hand."""

import math

import pytest

from verl.trainer.ppo.statistics import wilson_interval


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
