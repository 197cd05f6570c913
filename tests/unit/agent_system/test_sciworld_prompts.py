"""ScienceWorld's prompts: what they say, and what they must not."""

import numpy as np
import pytest

from agent_system.config import ActionFormatConfig
from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.env_package.sciworld.prompts import sciworld_prompts
from agent_system.environments.prompting import make_prompts
from agent_system.types import Observation, ParsedAction, Turn

TASK = "Your task is to find a(n) animal. First, focus on the thing."
NO_IDS = np.zeros(0, dtype=np.int32)


def prompts(kind="think_action", **options):
    return sciworld_prompts(SciWorldOptions(**options), ActionFormatConfig(kind=kind))


def turn(command, answer):
    action = ParsedAction(command, True)
    return Turn(0, NO_IDS, NO_IDS, NO_IDS, "", action, answer, 0.0)


def test_the_rules_name_no_real_command():
    rules = prompts().system(TASK)
    for thing in ("door", "kitchen", "hallway", "cup", "jar", "thermometer"):
        assert thing not in rules.lower()


@pytest.mark.parametrize(
    ("simplification", "teleports", "connects"),
    [
        ("easy", True, True),
        ("", False, True),
        ("teleportAction,openDoors", True, True),
        ("openDoors,noElectricalAction", False, False),
    ],
)
def test_only_commands_of_the_game_played_are_named(simplification, teleports, connects):
    rules = prompts(simplification=simplification).system(TASK)
    assert ("teleport to" in rules) == teleports
    assert ("connect OBJECT" in rules) == connects


def test_the_first_message_holds_task_and_observation():
    text = prompts().first("Your task is\nto boil.", Observation("A room.\n"))
    assert text == "Task: Your task is to boil.\n\nObservation:\nA room."


def test_a_fresh_prompt_shows_the_last_turns_and_the_observation_once():
    history = [turn("go hall", "The hall."), turn("open jar", "It is open.")]
    text = prompts().turn(TASK, history, Observation("It is open."), 7)
    assert "(the last 2 of 7):\n> go hall\nThe hall.\n> open jar\n\nObservation:" in text
    assert text.count("It is open.") == 1


def test_a_fresh_prompt_without_history_is_the_first_message():
    observation = Observation("A room.")
    assert prompts().turn(TASK, [], observation, 0) == prompts().first(TASK, observation)


def test_plain_prompts_are_the_bare_texts():
    plain = prompts("plain")
    assert plain.system(TASK) is None
    assert plain.first(TASK, Observation("hall : axe")) == f"{TASK}\nhall : axe"
    assert plain.next(Observation("hall : axe")) == "hall : axe"
    shown = plain.turn(TASK, [turn("go hall", "hall : axe")], Observation("hall : axe"), 1)
    assert shown == f"{TASK}\n> go hall\nhall : axe"
    assert plain.parse(" go  hall \n", Observation("")) == ParsedAction("go hall", True)


def test_admissible_is_known_where_the_environment_lists_the_commands():
    listed = Observation("A room.", ("open jar",))
    valid = "<think>x</think><action>{}</action>"
    assert prompts().parse(valid.format("open jar"), listed).is_admissible is True
    assert prompts().parse(valid.format("open door"), listed).is_admissible is False
    assert prompts().parse(valid.format("open jar"), Observation("")).is_admissible is None


def test_an_environment_with_few_commands_can_list_them():
    listing = make_prompts("Rules.", ActionFormatConfig(), list_actions=True)
    observation = Observation("A room.", ("open jar", "go hall"))
    assert listing.next(observation).endswith("Commands accepted now:\nopen jar\ngo hall")
    assert "Commands accepted" not in prompts().next(observation)
