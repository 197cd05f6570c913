"""ALFWorld without its simulator: folders, lists of games, prompts. Runs without the package."""

import json
import logging
import os

import pytest

from agent_system.config import ActionFormatConfig, TaskSetConfig
from agent_system.environments.env_package.alfworld import alfworld_projection, data
from agent_system.environments.env_package.alfworld.data import (
    TASK_TYPES,
    find_data_dir,
    list_games,
)
from agent_system.environments.env_package.alfworld.tasks import HELD_OUT_TYPES, alfworld_tasks
from agent_system.environments.registry import get_env_package
from agent_system.types import Observation

ENV_NAME = "alfworld/AlfredTWEnv"
PRESENT = 'action PutObject { template :: "move {o} to {r}"; }'
OLDER = 'action PutObject { template :: "put {o} in/on {r}"; }'


def write_game(data_dir, split, task, trial="trial_0", *, solvable=True, grammar=PRESENT):
    folder = data_dir / "json_2.1.1" / split / task / trial
    folder.mkdir(parents=True)
    # a key inside a text, escaped in the file, must not count
    text = '"solvable": true' if not solvable else ""
    game = {"grammar": grammar, "pddl_problem": text, "solvable": solvable, "walkthrough": None}
    (folder / "game.tw-pddl").write_text(json.dumps(game))
    return folder / "game.tw-pddl"


@pytest.fixture
def games(tmp_path):
    """One game of each type in every split, and three that are left out."""
    for split in ("train", "valid_seen", "valid_unseen"):
        for number, name in enumerate(TASK_TYPES):
            write_game(tmp_path, split, f"{name}-Mug-None-Desk-{number}")
    write_game(tmp_path, "train", "pick_and_place_simple-Mug-None-Bed-301", solvable=False)
    write_game(tmp_path, "train", "pick_and_place_with_movable_recep-Mug-Bowl-Desk-301")
    write_game(tmp_path, "train", "pick_cool_then_place_in_recep-AppleSliced-None-Desk-1")
    return tmp_path


def test_the_lists_hold_solvable_games_of_the_six_types(games):
    for name in ("train", "valid_seen", "valid_unseen"):
        tasks = alfworld_tasks(TaskSetConfig(name=name), games)
        assert sorted(task.name for task in tasks) == sorted(TASK_TYPES)
        assert all(task.options["game"].startswith(f"json_2.1.1/{name}/") for task in tasks)
        assert all((games / task.options["game"]).exists() for task in tasks)


def test_held_out_types_are_not_in_their_training_list(games):
    train = alfworld_tasks(TaskSetConfig(name="held_out_types_train"), games)
    test = alfworld_tasks(TaskSetConfig(name="held_out_types_test"), games)
    assert {task.name for task in test} == HELD_OUT_TYPES
    assert {task.name for task in train} == set(TASK_TYPES) - HELD_OUT_TYPES
    assert all("valid_seen" in task.options["game"] for task in test)


def test_types_are_chosen_by_name(games):
    config = TaskSetConfig(name="train", tasks=["look_at_obj_in_light"])
    [task] = alfworld_tasks(config, games)
    assert task.name == "look_at_obj_in_light"
    assert task.options == {
        "game": "json_2.1.1/train/look_at_obj_in_light-Mug-None-Desk-1/trial_0/game.tw-pddl"
    }
    with pytest.raises(ValueError, match=r"unknown task type 'look'.*look_at_obj"):
        alfworld_tasks(TaskSetConfig(name="train", tasks=["look"]), games)


def test_a_file_is_a_list_too(tmp_path):
    row = {"name": "look_at_obj_in_light", "options": {"game": "json_2.1.1/train/a/b/game.tw-pddl"}}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([row]))
    [task] = alfworld_tasks(TaskSetConfig(name=str(path)), tmp_path)
    assert (task.name, task.options) == (row["name"], row["options"])


def test_an_unknown_list_is_refused(games):
    with pytest.raises(ValueError, match="'L0_train'; available: train, valid_seen, valid_unseen,"):
        alfworld_tasks(TaskSetConfig(name="L0_train"), games)


def test_without_games_one_sentence_names_both_remedies(tmp_path):
    env = get_env_package(ENV_NAME).bind({"data_dir": str(tmp_path)})
    with pytest.raises(ValueError) as caught:
        env.tasks(TaskSetConfig(name="valid_seen"))
    message = str(caught.value)
    assert f"no ALFWorld games in '{tmp_path}/json_2.1.1/valid_seen'" in message
    assert f"env_package.alfworld.generate --out {tmp_path}" in message
    assert f"ALFWORLD_DATA={tmp_path} alfworld-download" in message
    assert "\n" not in message


def test_the_folder_is_the_option_or_the_variable_or_the_default(monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", "/from/variable")
    assert str(find_data_dir("/from/option")) == "/from/option"
    assert str(find_data_dir("")) == "/from/variable"
    monkeypatch.delenv("ALFWORLD_DATA")
    assert str(find_data_dir("")) == os.path.expanduser("~/.cache/alfworld")


def test_files_are_read_once_and_again_after_a_change(games, monkeypatch):
    first = list_games(games, "train")
    with monkeypatch.context() as patch:
        patch.setattr(data, "_read_entry", lambda *_: pytest.fail("a file was read again"))
        assert list_games(games, "train") == first
    write_game(games, "train", "pick_two_obj_and_place-Pen-None-Desk-309")
    assert len(list_games(games, "train")) == len(first) + 1


@pytest.mark.parametrize("broken", ["", "[]", '{"fingerprint": 1}', '{"games": [{}]}'])
def test_a_broken_index_is_made_anew(games, broken):
    first = list_games(games, "train")
    index = games / "json_2.1.1" / "train" / data.INDEX_FILE
    whole = index.read_text()
    index.write_text(broken)
    assert list_games(games, "train") == first
    assert index.read_text() == whole
    assert not list(index.parent.glob(f".{index.name}.*"))  # nothing temporary is left


def test_a_folder_that_cannot_be_written_is_still_read(games, monkeypatch):
    def refuse(path, text):
        raise PermissionError(path)

    monkeypatch.setattr(data, "write_atomically", refuse)
    assert len(list_games(games, "train")) == 6


def test_other_counts_and_older_grammars_are_said(games, caplog):
    write_game(games, "valid_seen", "pick_two_obj_and_place-Pen-None-Desk-9", grammar=OLDER)
    with caplog.at_level(logging.INFO):
        entries = list_games(games, "valid_seen")
    assert [entry.is_present for entry in entries].count(False) == 1
    assert "7 solvable ALFWorld games" in caplog.text
    assert "the published data set has 140" in caplog.text
    assert "1 of the 7 games" in caplog.text and "older grammar" in caplog.text


def test_the_prompt_has_task_history_and_the_commands_of_now():
    prompts = get_env_package(ENV_NAME).bind({}).prompts(ActionFormatConfig())
    observation = Observation("You see a desk 1.", ("go to desk 1", "look"))
    text = prompts.first("put a mug in desk.", observation)
    assert text.startswith("Task: put a mug in desk.")
    assert text.endswith("Commands accepted now:\ngo to desk 1\nlook")
    parsed = prompts.parse("<think>.</think><action>go to desk 1</action>", observation)
    assert (parsed.is_format_valid, parsed.is_admissible) == (True, True)
    parsed = prompts.parse("<think>.</think><action>go to bed 1</action>", observation)
    assert (parsed.is_format_valid, parsed.is_admissible) == (True, False)


def test_the_projection_has_the_known_shape():
    texts = ["<think>a</think><action>go to desk 1</action>", "go to desk 1"]
    assert alfworld_projection(texts) == (["go to desk 1", ""], [1, 0])
    assert alfworld_projection(texts, [["look"], ["look"]]) == (["go to desk 1", ""], [1, 0])
