"""The pieces of benchmarks/environments.py, on the environments that start fastest; its page."""

import asyncio
import os
import random
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent_system.environments.task_files import (
    SHIPPED_LISTS,
    load_task_file,
    task_list_hash,
)
from agent_system.types import Observation, Task

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def parts():
    """The benchmark's modules, which are not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO)  # the example of an environment of one's own
        patch.syspath_prepend(REPO / "benchmarks")
        from environment_parts import memory, pool, speed, subjects

        yield SimpleNamespace(memory=memory, pool=pool, speed=speed, subjects=subjects)


@pytest.fixture(scope="module")
def custom(parts):
    with parts.subjects.open_subject("custom") as subject:
        yield subject


@pytest.fixture(scope="module")
def gymnasium(parts):
    with parts.subjects.open_subject("gymnasium") as subject:
        yield subject


def test_a_subject_plays_its_paths_and_else_random_admissible_commands(parts, custom):
    known, unknown = Task("known", {}), Task("unknown", {})
    subject = replace(custom, paths={known.key: list("abcde")})
    assert subject.max_steps == 4
    seen, rng = Observation("..", ("x", "y")), random.Random(0)
    assert [subject.command(known, seen, i, rng) for i in range(5)] == ["a", "b", "c", "d", None]
    drawn = [subject.command(unknown, seen, i, rng) for i in range(5)]
    assert set(drawn[:4]) <= {"x", "y"} and drawn[4] is None


def test_ratios_are_above_one_where_this_project_is_faster(parts):
    times = {
        # medians 200, 30 and 4 ms; 3 steps in 12 ms are 250 a second
        "package": parts.speed.Times(1.0, [0.1, 0.2, 0.9], [0.03], [0.004, 0.004, 0.004]),
        # medians 100, 60 and 1 ms; 4 steps in 8 ms are 500 a second
        "here": parts.speed.Times(2.0, [0.1], [0.06], [0.001, 0.001, 0.001, 0.005]),
    }
    rows = parts.speed.table_rows("game", times)
    assert [row[1] for row in rows] == [
        "start of a process, ms",
        "reset to a new task, ms",
        "reset to the same task, ms",
        "step, ms",
        "steps/s",
    ]
    expected = [[1000, 2000, 0.5], [200, 100, 2], [30, 60, 0.5], [4, 1, 4], [250, 500, 2]]
    for row, numbers in zip(rows, expected, strict=True):
        assert row[0] == "game"
        assert row[2:] == pytest.approx(numbers)


def test_without_a_package_there_is_nothing_to_compare_with(parts):
    times = {"here": parts.speed.Times(2.0, [0.1], [0.06], [0.002])}
    rows = parts.speed.table_rows("game", times)
    assert [row[2] for row in rows] == ["-"] * 5
    assert [row[4] for row in rows] == ["-"] * 5
    assert [row[3] for row in rows] == pytest.approx([2000, 100, 60, 2, 500])


def test_both_sides_play_the_same_number_of_steps(parts, gymnasium):
    options = Namespace(tasks=2, steps=3, warm_up=0.0, seed=0)
    times = asyncio.run(parts.speed.measure(gymnasium, options))
    package, here = times["package"], times["here"]
    assert len(package.new) == len(here.new) == 2
    assert len(package.again) == len(here.again) == 2
    assert 2 <= len(package.steps) == len(here.steps) <= 6
    assert all(seconds > 0 for side in (package, here) for seconds in (side.start, *side.steps))


def test_a_window_counts_only_while_every_player_is_warm(parts):
    window = parts.pool.Window(players=2, seconds=60.0)
    window.warm()
    assert not window.is_open and not window.is_over
    window.warm()
    assert window.is_open and not window.is_over
    at_once = parts.pool.Window(players=1, seconds=0.0)
    at_once.warm()
    assert at_once.is_over and not at_once.is_open


def test_the_pool_is_measured_at_every_number_of_slots(parts, custom):
    options = Namespace(slots=[1, 2], seconds=0.3, seed=0)
    one, two = parts.pool.table_rows(custom, options)
    assert (one[:2], two[:2]) == (["custom", 1], ["custom", 2])
    for name, slots, start_s, steps, resets, ratio in (one, two):
        assert 0 < start_s < 60, (name, slots)
        assert steps >= resets > 0  # an episode has at least one guess
        assert ratio == pytest.approx(steps / one[3])


def test_memory_counts_every_process_once(parts):
    once = parts.memory.usage([os.getpid()])
    twice = parts.memory.usage([os.getpid(), os.getpid()])
    assert once[0] == twice[0] >= 1
    assert twice[1] == pytest.approx(once[1], rel=0.1)
    assert 0 < once[2] <= once[1]  # a share of the pages that others have too


def test_memory_is_that_of_both_sides_with_the_same_commands(parts, gymnasium):
    options = Namespace(slots=2, episodes=1, seed=0)
    package, here = parts.memory.table_rows(gymnasium, options)
    assert (package[:3], here[:3]) == (["gymnasium", "package", 1.0], ["gymnasium", "here", 1.0])
    for row in (package, here):
        assert 1 < row[4] <= row[3]  # MB; PSS is at most RSS


def test_what_is_not_installed_is_left_out_with_the_reason(parts, monkeypatch):
    def missing():
        raise ValueError("install it")

    broken = SimpleNamespace(check=missing)
    installed = SimpleNamespace(check=lambda: None)
    packages = {"alfworld/AlfredTWEnv": broken}
    monkeypatch.setattr(
        parts.subjects, "get_env_package", lambda name: packages.get(name, installed)
    )
    names, reasons = parts.subjects.playable()
    assert "alfworld" not in names and "sciworld" in names
    assert reasons == ["Left out: alfworld (install it)."]


def test_the_documented_hashes_are_those_of_the_lists_that_come_along():
    documented = (REPO / "docs" / "environments.md").read_text(encoding="utf-8")
    shipped = [path.name for path in SHIPPED_LISTS.glob("*.json")]
    assert shipped
    for name in shipped:
        assert f"| `{name}` | `{task_list_hash(load_task_file(name))}` |" in documented
