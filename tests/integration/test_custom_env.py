"""Environments of one's own, and all built-in ones, through the contract test kit."""

import json

import pytest

from agent_system.config import PoolConfig, TaskSetConfig
from agent_system.environments.registry import bind_env
from agent_system.environments.testing import check_env
from agent_system.types import Task
from verl.config.compose import compose_config

from ..runs import REPO, run

WRAPPERS = "agent_system.environments.env_package.gymnasium_text.wrappers"


@pytest.fixture(autouse=True)
def in_a_clone(monkeypatch):
    monkeypatch.syspath_prepend(REPO)


def halving(task, info):
    """The commands that find every number: higher or lower halves what is left."""
    from examples.custom_env.guess import GuessNumber

    game = GuessNumber()
    game.start(Task(**{"name": task.name, "options": task.options}))
    low, high, path = 1, 8, []
    while not path or path[-1] != game.secret:
        path.append(str((low + high) // 2))
        low, high = (
            (int(path[-1]) + 1, high) if path[-1] < game.secret else (low, int(path[-1]) - 1)
        )
    return path


def test_the_example_keeps_the_contract_and_is_short():
    report = check_env(
        "examples.custom_env.guess:PACKAGE",
        task_lists=("train", "dev", "test"),
        tasks_per_list=4,
        gold_path=halving,
        is_refusal=lambda text: text.startswith("That is no number"),
    )
    assert report.gold_paths == 12
    source = (REPO / "examples/custom_env/guess.py").read_text().splitlines()
    assert len([line for line in source if line.strip()]) <= 30


def test_frozen_lake_keeps_the_contract():
    report = check_env(
        "gymnasium/TextEnv",
        {
            "id": "FrozenLake-v1",
            "kwargs": {"is_slippery": False},
            "wrapper": f"{WRAPPERS}:FrozenLakeText",
        },
        # the published 4x4 map: SFFF FHFH FFFH HFFG
        gold_path=lambda task, info: ["down", "down", "right", "right", "down", "right"],
        is_refusal=lambda text: text.startswith("The commands are"),
    )
    assert report.gold_paths == 2


@pytest.mark.parametrize("slippery_map", [{"is_slippery": True}, {"map_name": "8x8"}])
def test_slippery_lakes_keep_the_contract(slippery_map):
    check_env(
        "gymnasium/TextEnv",
        {
            "id": "FrozenLake-v1",
            "kwargs": slippery_map,
            "wrapper": f"{WRAPPERS}:FrozenLakeText",
            "wrapper_kwargs": {"random_maps": True},
        },
    )


@pytest.mark.parametrize("preset", ["frozen_lake", "blackjack", "custom_env", "textworld_express"])
def test_presets_have_settings_and_disjoint_task_lists(preset):
    _, config = compose_config([f"env={preset}", "actor_rollout_ref.model.path=small"])
    env = bind_env(config.env)
    lists = [config.env.train, *config.env.val.values()]
    train, *val = ({task.key for task in env.tasks(which)} for which in lists)
    assert train and val and all(val)
    assert not any(train & keys for keys in val)
    opening = env.prompts(config.env.action_format).system("The task.")
    assert len(opening) > 20


def test_blackjack_keeps_the_contract():
    check_env("gymnasium/TextEnv", {"id": "Blackjack-v1", "wrapper": f"{WRAPPERS}:BlackjackText"})


@pytest.mark.slow
def test_scienceworld_keeps_the_contract():
    pytest.importorskip("scienceworld")
    report = check_env(
        "sciworld/SciWorldEnv",
        {"admissible_actions": True, "gold_path": True},
        task_lists=(
            TaskSetConfig("L0_train", tasks=["find-animal"]),
            TaskSetConfig("L1_test", tasks=["lifespan-longest-lived"]),
        ),
        tasks_per_list=1,
        steps=4,
        waiting_steps=12,
        idle_action="wait",
        repeatable_steps=False,  # its texts and intermediate scores are not
        pool=PoolConfig(reset_timeout_s=120.0),
    )
    assert report.gold_paths == 2


@pytest.mark.alfworld
@pytest.mark.slow
def test_alfworld_keeps_the_contract(tmp_path):
    from agent_system.environments.env_package.alfworld.generate import main as generate

    folder = tmp_path / "games"
    size = ["--games", "6", "--receptacles", "4-8", "--objects", "5-10", "--valid_games", "6"]
    assert generate(["--out", str(folder), *size]) == 0

    def walkthrough(task, info):
        return json.loads((folder / task.options["game"]).read_text())["walkthrough"]

    report = check_env(
        "alfworld/AlfredTWEnv",
        {"data_dir": str(folder)},
        task_lists=("train", "valid_unseen"),
        tasks_per_list=1,
        steps=6,
        idle_action="look",
        gold_path=walkthrough,
        is_refusal=lambda text: text.startswith("Nothing happens."),
    )
    assert report.gold_paths == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_trains_from_one_command(tmp_path):
    folder = tmp_path / "run"
    where = f"trainer.default_local_dir={folder}"
    done = run("main_ppo", "--config-name", "custom_env", where, cwd=REPO)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 2
    assert (folder / "global_step_2").is_dir()
