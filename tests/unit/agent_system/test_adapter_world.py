"""The driver's world: a checkpoint's state fits the environment and the tasks, or is refused."""

from types import SimpleNamespace

import pytest

from agent_system.adapters.world import World, one_episode_each
from agent_system.config import EnvConfig, TaskSetConfig
from agent_system.types import Task
from verl.config.root import PPOConfig
from verl.utils.errors import UserError

from ...families import family

LAKE = {"id": "FrozenLake-v1"}


def make_config(env_name="gymnasium/TextEnv", options=LAKE, train="train:5", **env):
    train = TaskSetConfig(train)
    env = EnvConfig(env_name=env_name, options=options, train=train, val={}, **env)
    return PPOConfig(env=env, epo=None)


def make_world(**env):
    return World(make_config(**env))


def drawn(world, count=3):
    return [(episode.uid, episode.task.key) for episode in world.train_episodes(count, 2)]


def test_a_restored_world_goes_on_where_it_stood():
    world = make_world()
    drawn(world)
    restored = make_world()
    restored.load_state_dict(world.state_dict())
    assert drawn(restored) == drawn(world)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"options": {"id": "Blackjack-v1"}}, "task list"),
        ({"train": "train:4"}, "task list"),
        ({"task_weights": "uniform_tasks"}, "env.task_weights=uniform_types"),
        (
            {"env_name": "textworld_express/TextWorldExpressEnv", "options": {}},
            "its run played env.env_name=gymnasium/TextEnv",
        ),
    ],
)
def test_the_state_of_another_run_is_refused(other, reason):
    with pytest.raises(ValueError, match=reason):
        make_world(**other).load_state_dict(make_world().state_dict())


def test_a_checkpoint_that_does_not_name_its_environment_is_taken():
    world = make_world()
    drawn(world)
    state = world.state_dict()
    del state["env_name"]
    restored = make_world()
    restored.load_state_dict(state)
    assert drawn(restored) == drawn(world)


def test_a_task_that_a_list_has_twice_is_one_task():
    door, lake = Task("door", {"seed": 1}), Task("lake", {"seed": 1})
    episodes = one_episode_each([door, lake, door], "test")
    assert [episode.uid for episode in episodes] == ["test-0", "test-1", "test-0"]
    assert [episode.traj_uid for episode in episodes] == ["test-0/0", "test-1/0", "test-2/0"]


def test_sample_prompts_have_the_date_that_they_are_given(tmp_path):
    tokenizer = family("dated")
    tokenizer.save_pretrained(tmp_path)
    config = make_config()
    config.actor_rollout_ref.model.path = str(tmp_path)
    world = World(config)
    for date, written in (("2026-01-31", "31 Jan 2026"), ("2026-02-01", "01 Feb 2026")):
        texts = tokenizer.batch_decode(world.sample_prompts(2, date))
        assert [f"Today: {written}" in text for text in texts] == [True, True]


def test_a_step_in_which_every_episode_is_lost_ends_in_a_sentence():
    world = make_world()
    lost = [
        SimpleNamespace(turns=[], reason=reason)
        for reason in ("env_error", "env_error", "overlong")
    ]
    with pytest.raises(UserError, match=r"first turn \(2 env_error, 1 overlong\).*/env_logs"):
        world.to_data_proto(lost)
