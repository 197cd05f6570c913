"""The rollout worker's settings, and the event loop behind its generator."""

import asyncio
import threading

import pytest

from agent_system.adapters.loop_thread import LoopThread
from agent_system.adapters.ray import (
    RolloutWorker,
    check_environment,
    load_tasks,
    max_model_len,
    prompt_budget,
)
from agent_system.config import EnvConfig, TaskSetConfig
from verl.config.algorithm import DataConfig
from verl.config.root import PPOConfig
from verl.utils.errors import UserError


def make_config(**env):
    config = PPOConfig(env=EnvConfig(**env), epo=None)
    config.data = DataConfig(max_prompt_length=100, max_response_length=20)
    return config


@pytest.fixture
def loop():
    thread = LoopThread("test-loop")
    yield thread
    thread.close()


async def count(cleaned, limit=3):
    try:
        for number in range(limit):
            await asyncio.sleep(0)
            yield number
    finally:
        cleaned.append(True)


def test_a_stream_is_an_ordinary_generator(loop):
    cleaned = []
    assert list(loop.stream(count(cleaned))) == [0, 1, 2]
    assert cleaned == [True]


def test_a_stream_that_is_left_early_cleans_up(loop):
    cleaned = []
    stream = loop.stream(count(cleaned))
    assert next(stream) == 0
    assert cleaned == []
    stream.close()
    assert cleaned == [True]


def test_an_error_in_a_stream_reaches_the_caller(loop):
    async def failing():
        yield 1
        raise RuntimeError("engine died")

    stream = loop.stream(failing())
    assert next(stream) == 1
    with pytest.raises(RuntimeError, match="engine died"):
        next(stream)


def test_closing_cancels_what_runs_and_ends_the_thread():
    loop = LoopThread("short-lived")
    events = []

    async def forever():
        try:
            await asyncio.sleep(60)
        finally:
            events.append("cleaned up")

    async def start():
        events.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    loop.run(start())
    loop.close()
    loop.close()
    task, outcome = events
    assert task.cancelled()
    assert outcome == "cleaned up"
    assert "short-lived" not in [thread.name for thread in threading.enumerate()]


def test_the_prompt_budget_leaves_room_for_a_response():
    config = make_config()
    assert (max_model_len(config), prompt_budget(config)) == (120, 100)
    config.actor_rollout_ref.rollout.max_model_len = 90
    assert prompt_budget(config) == 90 - 20
    config.actor_rollout_ref.rollout.max_model_len = 500
    assert prompt_budget(config) == 100
    config.actor_rollout_ref.rollout.max_model_len = 20
    with pytest.raises(UserError, match="max_model_len=20 leaves no room"):
        prompt_budget(config)


def test_task_lists_by_name():
    config = make_config(
        train=TaskSetConfig(name="L0_train", tasks=["boil"], max_tasks=5),
        val={"hard": TaskSetConfig(name="L1_test", tasks=["freeze"], max_tasks=3)},
    )
    assert [task.name for task in load_tasks(config, "train")] == ["boil"] * 5
    assert [task.name for task in load_tasks(config, "hard")] == ["freeze"] * 3
    with pytest.raises(UserError, match="unknown task list 'l9'; available: hard, train"):
        load_tasks(config, "l9")


def test_check_environment_accepts_what_runs():
    check_environment(make_config(train=TaskSetConfig(max_tasks=2), val={}))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"env_name": "chess"}, "unknown environment 'chess'; available: .*sciworld"),
        ({"options": {"colour": 1}}, "unknown key 'colour'"),
        ({"train": TaskSetConfig(tasks=["cooking"])}, "unknown task type 'cooking'"),
        ({"train": TaskSetConfig(max_tasks=0)}, "is empty"),
        ({"val": {"v": TaskSetConfig(name="L7")}}, "L7"),
    ],
)
def test_check_environment_says_what_is_wrong(env, message):
    with pytest.raises(UserError, match=message):
        check_environment(make_config(**env))


def test_a_worker_needs_a_rank():
    with pytest.raises(ValueError, match="rank=2 is not one of 2"):
        RolloutWorker(make_config(), rank=2, num_workers=2, device="cpu")


def test_a_worker_that_never_started_can_be_closed():
    RolloutWorker(make_config(), rank=0, num_workers=1, device="cpu").close()
