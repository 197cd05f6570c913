"""beta_k against hand-computed values."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epo.schedule import SCHEDULES

steps = st.integers(min_value=1, max_value=500).flatmap(
    lambda total: st.tuples(st.integers(0, total - 1), st.just(total))
)


@pytest.mark.parametrize(
    ("name", "step", "total", "gamma", "expected"),
    [
        ("paper", 0, 10, 3.0, 2.0),  # 1 + exp(0)
        ("paper", 5, 10, 3.0, 1.0497870684),  # half of the run: 1 + exp(-3) = 1 + 0.0497870684
        ("paper", 4, 5, 1.0, 1.1353352832),  # floor(5/2) = 2: 1 + exp(-1*4/2) = 1 + exp(-2)
        ("paper", 0, 1, 3.0, 2.0),  # floor(1/2) = 0 is taken as 1: 1 + exp(0)
        ("growing", 9, 10, 3.0, 2.0),  # the mirror of paper at 0
        ("growing", 4, 10, 3.0, 1.0497870684),  # the mirror of paper at 10-1-4 = 5
        ("growing", 0, 1, 3.0, 2.0),
        ("linear", 0, 11, 3.0, 2.0),
        ("linear", 5, 11, 3.0, 1.5),  # 2 - 5/10
        ("linear", 10, 11, 3.0, 1.0),
        ("linear", 0, 1, 3.0, 2.0),
        ("constant", 7, 10, 3.0, 1.0),
    ],
)
def test_value(name, step, total, gamma, expected):
    assert SCHEDULES[name](step, total, gamma) == pytest.approx(expected, abs=1e-9)


@given(steps, st.floats(0, 10))
def test_growing_mirrors_paper(step_of_total, gamma):
    step, total = step_of_total
    assert SCHEDULES["growing"](step, total, gamma) == SCHEDULES["paper"](
        total - 1 - step, total, gamma
    )


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(step_of_total=steps, gamma=st.floats(0, 10))
def test_stays_between_one_and_two(name, step_of_total, gamma):
    step, total = step_of_total
    assert 1.0 <= SCHEDULES[name](step, total, gamma) <= 2.0


@pytest.mark.parametrize("name", ["paper", "linear"])
def test_falls(name):
    betas = [SCHEDULES[name](step, 150, 3.0) for step in range(150)]
    assert all(later < earlier for earlier, later in pairwise(betas))


def test_a_run_continued_past_its_length_keeps_a_finite_beta():
    assert SCHEDULES["growing"](20, 10, 3.0) == 2.0
    assert SCHEDULES["linear"](20, 10, 3.0) == 1.0
    assert math.isclose(SCHEDULES["paper"](20, 10, 3.0), 1 + math.exp(-12))
