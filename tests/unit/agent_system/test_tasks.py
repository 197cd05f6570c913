"""Sampling tasks: every pass complete, resumable, balanced on request."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_system.config import EnvConfig
from agent_system.environments.tasks import TaskSampler
from agent_system.types import Task


def make_tasks(**counts):
    return [Task(name, {"variation": v}) for name, n in counts.items() for v in range(n)]


def coordinates(tasks):
    return [(task.name, task.options["variation"]) for task in tasks]


@given(st.integers(1, 12), st.integers(0, 5), st.integers(0, 100))
def test_each_pass_draws_every_task_once(count, passes, seed):
    tasks = make_tasks(a=count)
    drawn = coordinates(TaskSampler(tasks, seed).next(count * passes))
    for start in range(0, len(drawn), count):
        assert sorted(drawn[start : start + count]) == sorted(coordinates(tasks))


def test_passes_differ_in_order_and_seeds_in_everything():
    tasks = make_tasks(a=50)
    sampler = TaskSampler(tasks, seed=0)
    first, second = coordinates(sampler.next(50)), coordinates(sampler.next(50))
    assert first != second
    assert coordinates(TaskSampler(tasks, seed=1).next(50)) != first


def test_every_draw_has_an_episode_seed_of_its_own():
    seeds = [task.seed for task in TaskSampler(make_tasks(a=3), seed=0).next(30)]
    assert len(set(seeds)) == 30
    assert min(seeds) >= 1


@given(st.integers(0, 40), st.integers(1, 40), st.sampled_from(["uniform_types", "uniform_tasks"]))
def test_a_resumed_sampler_continues(before, after, weights):
    tasks = make_tasks(a=5, b=2)
    whole = TaskSampler(tasks, seed=3, weights=weights)
    whole.next(before)
    resumed = TaskSampler(tasks, seed=3, weights=weights)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.next(after) == whole.next(after)


def test_uniform_types_draws_every_type_equally_often():
    tasks = make_tasks(many=100, few=10)
    drawn = TaskSampler(tasks, seed=0, weights="uniform_types").next(40)
    assert Counter(task.name for task in drawn) == {"many": 20, "few": 20}
    # 20 draws of 10 tasks: each of them twice
    few = Counter(task.options["variation"] for task in drawn if task.name == "few")
    assert set(few.values()) == {2}


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match=r"env\.train\.tasks"):
        TaskSampler([], seed=0)


def test_a_state_of_another_list_is_refused():
    state = TaskSampler(make_tasks(a=3), seed=0).state_dict()
    with pytest.raises(ValueError, match=r"same env\.train settings"):
        TaskSampler(make_tasks(a=4), seed=0).load_state_dict(state)


def test_uniform_tasks_draws_a_type_as_often_as_it_has_variations():
    drawn = TaskSampler(make_tasks(many=100, few=10), seed=0, weights="uniform_tasks").next(110)
    assert Counter(task.name for task in drawn) == {"many": 100, "few": 10}


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 9), min_size=1),
    st.integers(1, 6),
    st.integers(0, 50),
)
def test_uniform_types_draws_a_type_without_replacement(counts, passes, seed):
    # one pass over the largest type takes its size in rounds; every round has each type once
    rounds = passes * max(counts.values())
    drawn = TaskSampler(make_tasks(**counts), seed, weights="uniform_types").next(
        rounds * len(counts)
    )
    for name, count in counts.items():
        of_type = [task.options["variation"] for task in drawn if task.name == name]
        assert len(of_type) == rounds
        for start in range(0, rounds - count + 1, count):
            assert sorted(of_type[start : start + count]) == list(range(count))


def test_other_weights_are_refused():
    state = TaskSampler(make_tasks(a=3), seed=0, weights="uniform_types").state_dict()
    with pytest.raises(ValueError, match=r"env\.task_weights=uniform_types.*uniform_tasks"):
        TaskSampler(make_tasks(a=3), seed=0, weights="uniform_tasks").load_state_dict(state)


def test_training_draws_types_equally_often_by_default():
    assert EnvConfig().task_weights == "uniform_types"
