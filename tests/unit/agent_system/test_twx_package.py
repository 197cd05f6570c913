"""TextWorldExpress without Java: settings, game parameters, task lists and prompts."""

import pytest

from agent_system.config import ActionFormatConfig, TaskSetConfig
from agent_system.environments.env_package.textworld_express import PACKAGE
from agent_system.environments.env_package.textworld_express.games import GAMES, parameter_string
from agent_system.environments.env_package.textworld_express.options import (
    TextWorldExpressOptions,
)
from agent_system.environments.registry import get_env_package
from agent_system.types import Observation, Task


def tasks(name, **kwargs):
    return PACKAGE.bind({}).tasks(TaskSetConfig(name, **kwargs))


def test_it_is_registered():
    assert get_env_package("textworld_express/TextWorldExpressEnv") is PACKAGE


def test_parameters_are_written_as_the_simulator_takes_them():
    assert parameter_string("coin", {}) == ""
    assert parameter_string("coin", {"numLocations": 5, "includeDoors": False}) == (
        "numLocations=5,includeDoors=0"
    )
    options = TextWorldExpressOptions(game_params={"coin": {"numLocations": 5}})
    assert options.params_of("coin") == "numLocations=5"
    assert options.params_of("twc") == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game_params": {"chess": {}}}, "unknown game 'chess'; available: arithmetic, coin"),
        ({"game_params": {"sorting": {"numLocations": 1}}}, "of sorting; available: none"),
        ({"game_params": {"coin": {"numLocations": 12}}}, "it takes whole numbers 1 to 11"),
        ({"game_params": {"coin": {"numLocations": "5"}}}, "numLocations='5' of coin"),
        ({"game_params": [1]}, "it has to be of type dict"),
        ({"jvm_heap_mb": 10}, "the simulator needs 64"),
        ({"heap": 10}, "unknown key 'heap'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PACKAGE.bind(options)


def test_the_folds_have_every_game_and_no_seed_in_common():
    lists = {fold: tasks(fold) for fold in ("train", "dev", "test")}
    seeds = {fold: {task.options["seed"] for task in listed} for fold, listed in lists.items()}
    for fold, listed in lists.items():
        assert len(listed) == 8 * 1000
        assert {task.name for task in listed} == set(GAMES)
        assert {task.options["fold"] for task in listed} == {fold}
    assert not seeds["train"] & seeds["dev"] | seeds["train"] & seeds["test"]
    assert not seeds["dev"] & seeds["test"]


def test_lists_of_chosen_games_and_seeds():
    chosen = tasks("test:2", tasks=["coin", "twc"])
    assert chosen == [
        Task(game, {"game": game, "fold": "test", "seed": seed})
        for game in ("coin", "twc")
        for seed in (20_000, 20_001)
    ]
    part = tasks("dev:998-1000", tasks=["coin"])
    assert [task.options["seed"] for task in part] == [10_998, 10_999]
    assert len(tasks("train:50", max_tasks=7)) == 7


@pytest.mark.parametrize(
    "name",
    ["L0_train", "train:0", "train:1001", "train:5-5", "train:9-3", "train:x", "train:-3"],
)
def test_unknown_lists_are_refused(name):
    with pytest.raises(ValueError, match=f"task list '{name}'"):
        tasks(name)


def test_prompts_list_the_commands_only_when_they_are_known():
    seen = Observation("A kitchen.", ("move north", "take coin"))
    formats = ActionFormatConfig()
    listed = PACKAGE.prompts(TextWorldExpressOptions(), formats).first("Find it.", seen)
    assert "take coin" in listed and "A kitchen." in listed
    silent = TextWorldExpressOptions(admissible_actions=False)
    assert "take coin" not in PACKAGE.prompts(silent, formats).first("Find it.", seen)


def test_a_command_is_judged_against_the_admissible_ones():
    prompts = PACKAGE.prompts(TextWorldExpressOptions(), ActionFormatConfig())
    seen = Observation("A kitchen.", ("take coin",))
    said = "<think>x</think><action>{}</action>".format
    assert prompts.parse(said("take coin"), seen).is_admissible is True
    refused = prompts.parse(said("fly away"), seen)
    assert (refused.is_admissible, refused.is_format_valid) == (False, True)
