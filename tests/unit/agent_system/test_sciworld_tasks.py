"""ScienceWorld's task lists against the published counts."""

import json
from collections import Counter

import pytest

from agent_system.config import EnvConfig, TaskSetConfig
from agent_system.environments.env_package.sciworld.build_variations import as_ranges
from agent_system.environments.env_package.sciworld.tasks import (
    HELD_OUT_TYPES,
    sciworld_tasks,
    variations,
)
from agent_system.environments.tasks import TaskSampler, task_list_hash


def tasks_of(name, **fields):
    return sciworld_tasks(TaskSetConfig(name=name, **fields))


@pytest.mark.parametrize(
    ("name", "count", "types"),
    [
        # all 30 tasks have 3592 / 1796 / 1819 variations, use-thermometer 270 / 135 / 135 of them
        ("L0_train", 3592 - 270, 29),
        ("L0_test", 1796 - 135, 29),
        ("L1_train", 3592 - 270, 29),
        ("L1_test", 1819 - 135, 29),
        ("L2_train", 2242, 19),
        ("L2_test", 549, 10),
        ("held_out_types_train", 2242, 19),
        ("held_out_types_test", 549, 10),
        ("all_train", 3592, 30),
        ("all_dev", 1796, 30),
        ("all_test", 1819, 30),
    ],
)
def test_the_published_counts(name, count, types):
    tasks = tasks_of(name)
    assert len(tasks) == len({task.key for task in tasks}) == count
    assert len({task.name for task in tasks}) == types


def test_the_splits_do_not_share_variations():
    train = {task.key for task in tasks_of("L0_train")}
    assert not train & {task.key for task in tasks_of("L0_test")}
    assert not train & {task.key for task in tasks_of("L1_test")}


def test_held_out_types_are_not_in_their_training_list():
    assert {task.name for task in tasks_of("held_out_types_test")} == HELD_OUT_TYPES
    assert not HELD_OUT_TYPES & {task.name for task in tasks_of("held_out_types_train")}


def test_the_held_out_names_are_other_names_of_l2():
    assert tasks_of("held_out_types_train") == tasks_of("L2_train")
    assert tasks_of("held_out_types_test") == tasks_of("L2_test")


def test_training_on_l0_is_training_on_the_types_of_l2_test():
    assert {task.name for task in tasks_of("L0_train")} >= HELD_OUT_TYPES


def test_every_task_is_reachable_by_name():
    types = {task.name for task in tasks_of("all_train")}
    assert "use-thermometer" in types
    for name in types:
        assert tasks_of("all_test", tasks=[name])


def test_types_are_drawn_alike_unless_asked_otherwise():
    sampler = TaskSampler(tasks_of("L0_train"), seed=0, weights=EnvConfig().task_weights)
    drawn = Counter(task.name for task in sampler.next(29 * 10))
    assert set(drawn.values()) == {10}  # 692 variations or 4, of each type 10


def test_a_task_carries_its_coordinates():
    task = tasks_of("L0_train", tasks=["find-animal"])[3]
    assert task.name == "find-animal"
    assert task.options == {"task_name": "find-animal", "variation": 3}
    assert task.seed == 0
    assert variations("find-animal", "dev") == list(range(150, 225))


def test_a_cut_is_seeded_and_keeps_the_order():
    cut = tasks_of("L1_test", max_tasks=20, seed=1)
    assert cut == tasks_of("L1_test", max_tasks=20, seed=1)
    assert cut != tasks_of("L1_test", max_tasks=20, seed=2)
    everything = tasks_of("L1_test")
    assert [everything.index(task) for task in cut] == sorted(everything.index(t) for t in cut)
    assert len(cut) == 20


def test_a_file_is_a_list_too(tmp_path):
    path = tmp_path / "mine.json"
    row = {"name": "boil", "options": {"task_name": "boil", "variation": 2}}
    path.write_text(json.dumps([row]))
    assert [task.key for task in tasks_of(str(path))] == ["boil[task_name=boil,variation=2]#0"]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("L9_test", {}, "unknown task list 'L9_test'; available: L0_train, "),
        ("L0_train", {"tasks": ["find-gold"]}, "unknown task type 'find-gold'.*find-animal"),
        ("L0_train", {"max_tasks": 0}, "is empty with .* max_tasks=0"),
        ("absent.json", {}, "cannot read the task list 'absent.json'"),
    ],
)
def test_bad_settings_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        tasks_of(name, **fields)


def test_ids_as_ranges():
    assert as_ranges([0, 1, 2, 5, 7, 8]) == [[0, 2], [5, 5], [7, 8]]
    assert as_ranges([]) == []


def test_the_hash_of_a_list_is_stable_and_tells_lists_apart():
    # Pinned: results name it, so it must not change between versions.
    assert task_list_hash(tasks_of("L1_test", max_tasks=128)) == "1ce0e54dec801910"
    assert task_list_hash(tasks_of("L0_test")) != task_list_hash(tasks_of("L1_test"))
