"""Stored task lists: what is written is read, and a changed file is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_system.config import TaskSetConfig
from agent_system.environments.registry import get_env_package
from agent_system.environments.task_files import (
    SHIPPED_LISTS,
    TaskFile,
    count_overlap,
    describe_tasks,
    load_task_file,
    main,
    task_list_hash,
)
from agent_system.types import Task

TASKS = (Task("a", {"variation": 1}), Task("b", {"variation": 2}, seed=5))


@pytest.fixture
def stored(tmp_path):
    """A list in a file."""
    path = tmp_path / "two.json"
    TaskFile("two", 3, "my/Env", TASKS).write(path)
    return path


def test_a_written_list_is_read(stored):
    assert TaskFile.read(stored) == TaskFile("two", 3, "my/Env", TASKS)
    assert load_task_file(stored, "my/Env") == list(TASKS)
    assert json.loads(stored.read_text())["hash"] == task_list_hash(TASKS)


# it writes files
@given(st.lists(st.builds(Task, st.text(), st.dictionaries(st.text(), st.integers() | st.text()))))
def test_any_list_is_read_as_it_was_written(tmp_path_factory, tasks):
    path = tmp_path_factory.mktemp("lists") / "any.json"
    TaskFile("any", 1, "my/Env", tuple(tasks)).write(path)
    assert load_task_file(path) == tasks


@pytest.mark.parametrize(
    ("old", "new"), [('"variation": 1', '"variation": 7'), ('"seed": 5', '"seed": 6')]
)
def test_a_changed_file_is_refused(stored, old, new):
    stored.write_text(stored.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"was changed: its tasks have the hash .*, not the "):
        load_task_file(stored)


def test_a_list_of_another_environment_is_refused(stored):
    with pytest.raises(ValueError, match="is one of my/Env, not of their/Env"):
        load_task_file(stored, "their/Env")


def test_a_bare_list_of_tasks_is_a_list_too(tmp_path):
    path = tmp_path / "bare.json"
    path.write_text(json.dumps([{"name": "a", "options": {"variation": 1}}]))
    assert load_task_file(path, "my/Env") == [Task("a", {"variation": 1})]
    assert describe_tasks(TaskSetConfig(str(path)), [TASKS[0]])["version"] == 0


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '[{"nam": "a"}]', "[1]", "3", '{"tasks": []}', '{"name": "a", "tasks": [{}]}'],
)
def test_a_malformed_file_is_refused(tmp_path, text):
    path = tmp_path / "tasks.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="it has to be a JSON object with"):
        load_task_file(path)


def test_a_missing_file_is_refused():
    with pytest.raises(ValueError, match=r"cannot read the task list 'absent\.json'"):
        load_task_file("absent.json")


def test_a_description_names_list_version_hash_and_size(stored):
    cut = describe_tasks(TaskSetConfig(str(stored), max_tasks=1), TASKS[:1])
    assert cut == {"name": "two", "version": 3, "hash": task_list_hash(TASKS[:1]), "n": 1}
    named = describe_tasks(TaskSetConfig("L0_test"), TASKS)
    assert (named["name"], named["version"], named["n"]) == ("L0_test", None, 2)


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED_LISTS.glob("*.json")))
def test_shipped_lists_are_whole_and_known_by_name(name):
    stored = TaskFile.read(name)
    assert stored == TaskFile.read(SHIPPED_LISTS / name)
    assert f"{stored.name}.json" == name
    env = get_env_package(stored.environment).bind({})
    assert env.tasks(TaskSetConfig(name)) == list(stored.tasks)


def test_shipped_lists_are_those_of_their_presets():
    config = TaskSetConfig("L1_test", max_tasks=128)
    tasks = get_env_package("sciworld/SciWorldEnv").bind({}).tasks(config)
    assert load_task_file("sciworld_l1_test_128.json") == tasks


def test_a_file_in_the_working_folder_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TaskFile("mine", 1, "my/Env", TASKS).write(tmp_path / "sciworld_l1_test_128.json")
    assert load_task_file("sciworld_l1_test_128.json") == list(TASKS)


def test_the_command_writes_any_named_list(tmp_path):
    path = tmp_path / "mine.json"
    choice = ["L1_test", "--tasks", "boil,melt", "--max_tasks", "5", "--seed", "2"]
    named = ["--name", "mine", "--version", "4", "--output", str(path)]
    main(["sciworld/SciWorldEnv", *choice, *named])
    stored = TaskFile.read(path)
    assert (stored.name, stored.version, stored.environment) == ("mine", 4, "sciworld/SciWorldEnv")
    assert len(stored.tasks) == 5
    assert {task.name for task in stored.tasks} <= {"boil", "melt"}


def test_the_command_refuses_an_unknown_list_in_a_sentence(tmp_path, capsys):
    named = ["--name", "mine", "--output", str(tmp_path / "mine.json")]
    with pytest.raises(SystemExit):
        main(["sciworld/SciWorldEnv", "L7_test", *named])
    assert "unknown task list 'L7_test'; available: L0_train" in capsys.readouterr().err


def test_the_command_asks_for_the_list_with_the_options_given(tmp_path, capsys):
    named = ["test:2", "--name", "lake", "--output", str(tmp_path / "lake.json")]
    main(["gymnasium/TextEnv", *named, "--options", '{"id": "FrozenLake-v1"}'])
    assert [task.name for task in load_task_file(tmp_path / "lake.json")] == ["FrozenLake-v1"] * 2
    for wrong, message in (("{}", "env.options.id is missing"), ("[1]", "invalid _options value")):
        with pytest.raises(SystemExit):
            main(["gymnasium/TextEnv", *named, "--options", wrong])
        assert message in capsys.readouterr().err


def test_overlap_ignores_seeds_that_do_not_make_the_task():
    train = [Task("a", {"variation": v}) for v in range(3)]
    other = [Task("a", {"variation": v}, seed=9) for v in range(2, 5)]
    assert count_overlap(train, other) == 1
    assert count_overlap(train, [Task("b", {"variation": 1})]) == 0
    assert count_overlap([Task("a", {}, seed=1)], [Task("a", {}, seed=2), Task("a", {}, 1)]) == 1


@pytest.mark.parametrize(
    ("environment", "train", "test"),
    [
        ("sciworld/SciWorldEnv", "L0_train", "L0_test"),
        ("sciworld/SciWorldEnv", "L0_train", "L1_test"),
        ("sciworld/SciWorldEnv", "L2_train", "L2_test"),
        ("sciworld/SciWorldEnv", "all_train", "all_test"),
        ("textworld_express/TextWorldExpressEnv", "train:50", "test:50"),
        ("gymnasium/TextEnv", "train", "test"),
    ],
)
def test_training_lists_share_nothing_with_their_tests(environment, train, test):
    options = {"id": "FrozenLake-v1"} if environment == "gymnasium/TextEnv" else {}
    lists = get_env_package(environment).bind(options).tasks
    assert count_overlap(lists(TaskSetConfig(train)), lists(TaskSetConfig(test))) == 0
    assert count_overlap(lists(TaskSetConfig(train)), lists(TaskSetConfig(train))) > 0
