"""The gymnasium adapter: FrozenLake and Blackjack in words, success, and what it refuses."""

from collections import deque
from itertools import product

import gymnasium
import pytest
from gymnasium.spaces import Text

from agent_system.config import TaskSetConfig
from agent_system.environments.env_package.gymnasium_text import PACKAGE
from agent_system.environments.registry import get_env_package
from agent_system.environments.task_files import count_overlap
from agent_system.types import Task

WRAPPERS = "agent_system.environments.env_package.gymnasium_text.wrappers"
LAKE = {
    "id": "FrozenLake-v1",
    "kwargs": {"map_name": "4x4", "is_slippery": False},
    "wrapper": f"{WRAPPERS}:FrozenLakeText",
}
BLACKJACK = {"id": "Blackjack-v1", "wrapper": f"{WRAPPERS}:BlackjackText"}


def make(**options):
    return PACKAGE.bind(options).open()


def reset(env, seed=0):
    return env.reset(options={"task": {"options": {"seed": seed}}})


def play(env, seed, commands):
    answer = (*reset(env, seed)[:1], 0.0, False, False, {})
    for command in commands:
        if answer[2]:
            break
        answer = env.step(command)
    return answer


def shortest_path(drawing):
    """Commands from P to G in a drawn map, around the holes."""
    rows = [line.split() for line in drawing.splitlines()]
    moves = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
    (start,) = [(r, c) for r, row in enumerate(rows) for c, sign in enumerate(row) if sign == "P"]
    queue, seen = deque([(start, [])]), {start}
    while queue:
        (row, column), path = queue.popleft()
        if rows[row][column] == "G":
            return path
        for name, (down, right) in moves.items():
            place = (row + down, column + right)
            if not (0 <= place[0] < len(rows) and 0 <= place[1] < len(rows)) or place in seen:
                continue
            if rows[place[0]][place[1]] != "O":
                seen.add(place)
                queue.append((place, [*path, name]))
    raise AssertionError(f"no path in {drawing}")


def test_it_is_registered_and_its_tasks_are_seeds():
    assert get_env_package("gymnasium/TextEnv") is PACKAGE
    lake = PACKAGE.bind({"id": "FrozenLake-v1"})
    assert lake.tasks(TaskSetConfig("test:2")) == [
        Task("FrozenLake-v1", {"seed": 20_000}),
        Task("FrozenLake-v1", {"seed": 20_001}),
    ]


RANDOM_LAKE = {**LAKE, "wrapper_kwargs": {"random_maps": True}}


def test_a_map_of_training_is_found_under_another_seed():
    lake = PACKAGE.bind(RANDOM_LAKE)
    train = lake.tasks(TaskSetConfig("train"))
    by_seed = [Task("FrozenLake-v1", {"seed": 20_000 + number}) for number in range(100)]
    assert count_overlap(train, by_seed) == 0
    # 4x4 fields, a fifth of them holes: 1,000 seeds make 499 maps, and 67 of 100 others are theirs
    assert count_overlap(train, by_seed, lake.content) == 67
    first, twin = make(**RANDOM_LAKE), make(**RANDOM_LAKE)
    same = next(t for t in by_seed for k in train[:50] if lake.content(t) == lake.content(k))
    known = next(k for k in train if lake.content(k) == lake.content(same))
    assert reset(first, same.options["seed"])[0] == reset(twin, known.options["seed"])[0]


def test_validation_maps_are_none_of_training():
    lake = PACKAGE.bind(RANDOM_LAKE)
    folds = {name: lake.tasks(TaskSetConfig(name)) for name in ("train", "dev", "test:100")}
    assert len(folds["test:100"]) == 100
    assert count_overlap(folds["train"] + folds["dev"], folds["test:100"], lake.content) == 0
    assert len({lake.content(task) for task in folds["test:100"]}) == 100
    assert lake.tasks(TaskSetConfig("test:3-5")) == folds["test:100"][3:5]
    with pytest.raises(ValueError, match=r"test has 189 games .* ask for no more than test:189"):
        lake.tasks(TaskSetConfig("test:200"))


def test_luck_is_content_where_the_map_is_not():
    fixed = LAKE | {"kwargs": {"map_name": "4x4", "is_slippery": True}}
    assert PACKAGE.bind(fixed).content(Task("FrozenLake-v1", {"seed": 1})) is None
    assert len(PACKAGE.bind(fixed).tasks(TaskSetConfig("test:5"))) == 5
    still = PACKAGE.bind(LAKE | {"kwargs": {"map_name": "4x4", "is_slippery": False}})
    with pytest.raises(ValueError, match="test has 0 games"):
        still.tasks(TaskSetConfig("test:5"))


def test_the_lake_is_drawn_and_crossed():
    env = make(**LAKE)
    text, info = reset(env)
    assert text.splitlines()[0] == "P . . ."
    assert info["admissible_actions"] == ["left", "down", "right", "up"]
    assert (info["score"], info["success"]) == (0.0, False)
    text, reward, terminated, truncated, info = play(env, 0, shortest_path(text))
    assert (reward, terminated, truncated) == (100.0, True, False)
    assert (info["score"], info["success"], info["raw_reward"]) == (100.0, True, 1.0)


def test_a_hole_is_a_failure():
    # the published 4x4 map: SFFF FHFH FFFH HFFG, so right and down is the first hole
    text, reward, terminated, _, info = play(make(**LAKE), 0, ["right", "down"])
    assert text == "You fell into a hole."
    assert (reward, terminated, info["success"], info["failed"]) == (0.0, True, False, True)


def test_every_seed_has_a_map_of_its_own_if_asked():
    env = make(**LAKE, wrapper_kwargs={"random_maps": True})
    maps = {seed: reset(env, seed)[0] for seed in range(6)}
    assert len(set(maps.values())) > 1
    assert all(reset(env, seed)[0] == text for seed, text in maps.items())
    assert all(play(env, seed, shortest_path(text))[4]["success"] for seed, text in maps.items())


def test_the_environments_own_time_limit_truncates():
    env = make(**{**LAKE, "kwargs": {**LAKE["kwargs"], "max_episode_steps": 3}})
    reset(env)
    assert [env.step("left")[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


def test_blackjack_is_won_by_a_positive_reward_only():
    env = make(**BLACKJACK)
    text, info = reset(env, 3)
    assert text.startswith("Your cards make ")
    assert info["admissible_actions"] == ["stick", "hit"]
    endings = {}
    for seed, hits in product(range(20), range(3)):
        info = play(env, seed, ["hit"] * hits + ["stick"])[4]
        endings.setdefault(info["raw_reward"], set()).add((info["success"], info["score"]))
    # a loss, a draw and a win; only the last one is a success
    assert endings == {-1.0: {(False, 0.0)}, 0.0: {(False, 0.0)}, 1.0: {(True, 100.0)}}


def test_unknown_commands_are_answered_and_change_nothing():
    env = make(**LAKE)
    text, _ = reset(env)
    for command in ("fly", "", "\ud800", "right " * 2000):
        answer, reward, terminated, truncated, info = env.step(command)
        assert answer == f"The commands are: left, down, right, up.\n{text}"
        assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)


class Echo(gymnasium.Env):
    """Text in, text out; pays 1 for every "go", and does not say whether the end, "og", is won."""

    observation_space = Text(1000)
    action_space = Text(10, charset="og")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "start", {}

    def step(self, action):
        return action, float(action == "go"), action == "og", False, {}


@pytest.fixture
def echo():
    gymnasium.register("Echo-v0", entry_point=Echo)
    yield {"id": "Echo-v0", "task_text": "Go."}
    del gymnasium.registry["Echo-v0"]


def test_a_text_environment_needs_no_wrapper_and_success_can_be_defined(
    echo, tmp_path, monkeypatch
):
    hook = "def paid_twice(outcome):\n    return outcome.episode_return == 2.0\n"
    (tmp_path / "echo_success.py").write_text(hook)
    monkeypatch.syspath_prepend(tmp_path)
    env = make(**echo, success="echo_success:paid_twice")
    text, info = reset(env)
    assert (text, info["task_text"]) == ("start", "Go.")
    assert "admissible_actions" not in info
    assert env.step("go")[4]["success"] is False
    assert env.step("outside of the action space")[0] == "There is no such command."
    _, reward, terminated, _, info = env.step("go")
    assert (reward, terminated, info["success"], info["score"]) == (100.0, True, True, 100.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "env.options.id is missing"),
        ({"id": "Chess-v7"}, "env.options.id='Chess-v7' is no environment"),
        ({"id": "FrozenLake-v1", "wrapper": "nowhere:Wrapper"}, "cannot import 'nowhere:Wrapper'"),
        ({"id": "FrozenLake-v1", "success": "math:nothing"}, "cannot import 'math:nothing'"),
        ({"id": "FrozenLake-v1"}, r"observations of FrozenLake-v1 are Discrete\(16\), not text"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_an_environment_without_words_or_success_is_refused(echo):
    with pytest.raises(ValueError, match=r"Echo-v0 has no words for its task"):
        reset(make(id="Echo-v0"))
    with pytest.raises(ValueError, match="pass the task as"):
        make(**echo).reset()
    env = make(**echo)
    reset(env)
    with pytest.raises(ValueError, match="does not say what success is"):
        env.step("og")
