"""ALFWorld's real simulator: published and generated games, older files, speed-ups, processes."""

import asyncio
import json
import logging
import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("alfworld")

from textworld.envs.pddl import textgen
from textworld.logic import Rule

from agent_system.config import PoolConfig, TaskSetConfig
from agent_system.environments.env_package.alfworld import speedups as speedups_module
from agent_system.environments.env_package.alfworld.data import TASK_TYPES, list_games
from agent_system.environments.env_package.alfworld.env import (
    AlfWorldEnv,
    open_simulator,
    split_intro,
)
from agent_system.environments.env_package.alfworld.game_files import read_game
from agent_system.environments.env_package.alfworld.generate import main as generate
from agent_system.environments.env_package.alfworld.gold import check_win, gold_path
from agent_system.environments.env_package.alfworld.options import AlfWorldOptions
from agent_system.environments.env_package.alfworld.speedups import speedups
from agent_system.environments.env_package.alfworld.tasks import alfworld_tasks
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import get_env_package

pytestmark = [pytest.mark.alfworld, pytest.mark.slow, pytest.mark.timeout(600)]

ENV_NAME = "alfworld/AlfredTWEnv"
SPLITS = ("train", "valid_seen", "valid_unseen")
REPO = Path(__file__).parents[2]
SAMPLE = Path(
    os.environ.get("ALFWORLD_SAMPLE", REPO.parent / "shared" / "data" / "alfworld_sample.tar.xz")
)
SMALL = ["--receptacles", "4-8", "--objects", "5-10", "--valid_games", "6"]
MAX_STEPS = 50


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A data folder with 60 training games, ten of each type, and 6 games in each other split."""
    folder = tmp_path_factory.mktemp("generated") / "games"
    assert generate(["--out", str(folder), "--games", "60", *SMALL]) == 0
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The data folder of real games."""
    if not SAMPLE.exists():
        pytest.skip("no sample of real games; name the archive in ALFWORLD_SAMPLE")
    folder = tmp_path_factory.mktemp("sample")
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.rglob("json_2.1.1")).parent


@pytest.fixture
def env(generated):
    """The environment on the generated games."""
    env = AlfWorldEnv(AlfWorldOptions(data_dir=str(generated)))
    yield env
    env.close()


def start(env, game):
    return env.reset(seed=1, options={"task": {"options": {"game": game}}})


def one_of_each_type(folder, split="train"):
    games = {}
    for game in list_games(folder, split):
        games.setdefault(game.task_type, game.path)
    return games


def stored_walkthrough(folder, game):
    return json.loads((folder / game).read_text())["walkthrough"]


def random_episode(env, game, steps):
    """Everything the environment says while random commands are played."""
    rng = random.Random(game)
    observation, info = start(env, game)
    said = [(observation, info)]
    for _ in range(steps):
        step = env.step(rng.choice(info["admissible_actions"]))
        info = step[-1]
        said.append(step)
    return said


# Winning and waiting, in processes of a pool


def tasks_of(folder, split):
    return alfworld_tasks(TaskSetConfig(name=split), folder)


@pytest.fixture
def open_pool():
    """Opens pools of two processes that play the games of a folder."""
    pools = []

    def open_pool(folder):
        env = get_env_package(ENV_NAME).bind({"data_dir": str(folder)})
        pools.append(EnvPool(env, PoolConfig(slots_per_worker=2)))
        return pools[-1]

    yield open_pool
    for pool in pools:
        pool.close()


def outcomes(played):
    """Whether each episode was won, and after how many commands, each of them admissible."""
    for episode in played:
        seen = [episode.observation, *(result.observation for result in episode.results)]
        for command, observation in zip(episode.actions, seen, strict=False):
            assert command in observation.admissible_actions
    return [(episode.is_success, len(episode.actions)) for episode in played]


def test_walkthroughs_win_60_generated_games_and_waiting_none(generated, open_pool, play_scripts):
    tasks, pool = tasks_of(generated, "train"), open_pool(generated)
    assert [sum(task.name == name for task in tasks) for name in TASK_TYPES] == [10] * 6
    paths = {task.key: stored_walkthrough(generated, task.options["game"]) for task in tasks}
    won = play_scripts(pool, tasks, lambda task, info: paths[task.key])
    assert outcomes(won) == [(True, len(paths[task.key])) for task in tasks]
    waited = play_scripts(pool, tasks, lambda task, info: ["look", "inventory"] * (MAX_STEPS // 2))
    assert outcomes(waited) == [(False, MAX_STEPS)] * 60


def test_gold_paths_win_every_game_of_the_sample_and_waiting_none(sample, open_pool, play_scripts):
    tasks, pool = [task for split in SPLITS for task in tasks_of(sample, split)], open_pool(sample)
    assert len(tasks) == 48
    assert {task.name for task in tasks} == set(TASK_TYPES)
    paths = {task.key: gold_path(sample / task.options["game"]) for task in tasks}
    won = play_scripts(pool, tasks, lambda task, info: paths[task.key])
    assert outcomes(won) == [(True, len(paths[task.key])) for task in tasks]
    waited = play_scripts(pool, tasks, lambda task, info: ["look", "inventory"] * 5)
    assert outcomes(waited) == [(False, 10)] * 48


def test_members_of_a_group_see_the_same_in_their_own_processes(generated, open_pool):
    task, rng = tasks_of(generated, "train")[0], random.Random(0)

    async def play():
        pool = open_pool(generated)
        async with pool.acquire() as one, pool.acquire() as other:
            (seen, _), (also_seen, _) = await one.reset(task), await other.reset(task)
            for _ in range(20):
                assert seen == also_seen
                command = rng.choice(seen.admissible_actions)
                seen = (await one.step(command)).observation
                also_seen = (await other.step(command)).observation

    asyncio.run(play())


# One environment


def test_an_episode_from_its_start_to_the_goal(env, generated):
    game = one_of_each_type(generated)["pick_heat_then_place_in_recep"]
    observation, info = start(env, game)
    assert observation.startswith("You are in the middle of a room.")
    assert "task" not in observation and info["task_text"].endswith(".")
    assert (info["score"], info["success"], info["moves"]) == (0, False, 0)
    assert "help" not in info["admissible_actions"]
    *before, last = stored_walkthrough(generated, game)
    for command in before:
        _, reward, terminated, truncated, info = env.step(command)
        assert (reward, terminated, truncated, info["score"]) == (0.0, False, False, 0)
    _, reward, terminated, truncated, info = env.step(f" {last.upper()}  ")
    assert (reward, terminated, truncated) == (100.0, True, False)
    assert (info["score"], info["success"], info["lenient_success"]) == (100, True, True)
    assert info["moves"] == len(before) + 1


def test_what_is_not_accepted_changes_nothing(env, generated):
    game = one_of_each_type(generated)["look_at_obj_in_light"]
    _, info = start(env, game)
    for command in ("", "fly to the moon", "go to", "x" * 5000, "go to desk 99"):
        observation, reward, terminated, _, after = env.step(command)
        assert observation == "Nothing happens."
        assert (reward, terminated) == (0.0, False)
        assert after["admissible_actions"] == info["admissible_actions"]


def test_equal_episodes_are_equal_whatever_came_between(env, generated):
    games = list(one_of_each_type(generated).values())
    first = random_episode(env, games[0], 12)
    assert random_episode(env, games[0], 12) == first  # without loading it again
    random_episode(env, games[1], 3)
    assert random_episode(env, games[0], 12) == first


@pytest.mark.parametrize("options", [None, {}, {"task": {}}, {"task": {"options": {"x": 1}}}])
def test_a_reset_without_a_game_is_refused(env, options):
    with pytest.raises(ValueError, match="pass the task as"):
        env.reset(options=options)


def test_a_game_that_cannot_be_read_is_refused_and_the_next_one_plays(env, generated):
    with pytest.raises(ValueError, match=r"cannot read the ALFWorld game '.*absent'"):
        start(env, "json_2.1.1/train/absent")
    game = next(iter(one_of_each_type(generated).values()))
    assert start(env, game)[0].startswith("You are in")


def test_the_first_text_is_cut_in_two():
    text = "-= Welcome to TextWorld, ALFRED! =-\n\nA room.\n\nYour task is to: put a mug in desk."
    assert split_intro(text) == ("A room.", "put a mug in desk.")
    assert split_intro("A room.") == ("A room.", "")


# Files of older versions


def as_older(game):
    """What ALFWorld 0.2 wrote: another command and sentence for putting, and no help."""
    grammar = game["grammar"].replace("move {o} to {r}", "put {o} in/on {r}")
    grammar = grammar.replace("You move the {o.name} to", "You put the {o.name} in/on")
    domain = game["pddl_domain"]
    domain = domain[: domain.index("(:action help")] + ")\n"
    grammar = grammar[: grammar.index("action help {")]
    return game | {"grammar": grammar, "pddl_domain": domain}


@pytest.fixture
def older(generated, tmp_path):
    """The generated games as an older version would have stored them, one of each type."""
    for path in one_of_each_type(generated).values():
        target = tmp_path / path
        shutil.copytree((generated / path).parent, target.parent)
        target.write_text(json.dumps(as_older(json.loads(target.read_text()))))
    return tmp_path


def test_older_games_are_found_upgraded_and_won(older, generated, caplog):
    with caplog.at_level(logging.INFO):
        games = list_games(older, "train")
    assert "6 of the 6 games" in caplog.text and "older grammar" in caplog.text
    for game in games:
        assert read_game(older / game.path) == read_game(generated / game.path)
    with speedups():
        simulator = open_simulator()
        for game in games:
            path = gold_path(older / game.path)
            assert path == stored_walkthrough(generated, game.path)
            check_win(path, read_game(older / game.path), simulator)


def test_games_of_the_sample_are_of_the_present_version(sample):
    assert all(game.is_present for split in SPLITS for game in list_games(sample, split))
    game = sample / list_games(sample, "train")[0].path
    older = as_older(read_game(game))
    assert older != read_game(game)
    (upgraded := game.with_name("older.tw-pddl")).write_text(json.dumps(older))
    assert read_game(upgraded) == read_game(game)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grammar": "no goal"}, "older grammar without the text of its goal"),
        ({"pddl_problem": "(define (problem x) (:domain other))"}, "not a game of ALFWorld's"),
        ({"pddl_domain": None}, "cannot read"),
    ],
)
def test_what_cannot_be_upgraded_is_refused_with_the_remedy(older, change, message):
    path = older / list_games(older, "train")[0].path
    game = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: game[key] for key in game if game[key] is not None}))
    with pytest.raises(ValueError, match=message) as caught:
        read_game(path)
    assert "alfworld-download --force" in str(caught.value)


# Speed-ups


def test_speedups_change_no_text_and_no_command(generated):
    games = list(one_of_each_type(generated).values())
    episodes = {}
    for fast in (True, False):
        env = AlfWorldEnv(AlfWorldOptions(data_dir=str(generated), speedups=fast))
        episodes[fast] = [random_episode(env, game, 5) for game in games]
        env.close()
    assert episodes[True] == episodes[False]


def test_speedups_change_nothing_in_a_real_game(sample):
    games = list(one_of_each_type(sample, "valid_unseen").values())
    smallest = min(games, key=lambda game: (sample / game).stat().st_size)
    episodes = []
    for fast in (True, False):
        env = AlfWorldEnv(AlfWorldOptions(data_dir=str(sample), speedups=fast))
        episodes.append(random_episode(env, smallest, 10))
        env.close()
    assert episodes[0] == episodes[1]


def test_speedups_are_undone(generated):
    before = (
        textgen._parse_and_convert,
        textgen.copy_context,
        vars(Rule)["parse_conjunctive_query"],
    )
    env = AlfWorldEnv(AlfWorldOptions(data_dir=str(generated)))
    assert textgen._parse_and_convert is not before[0]
    env.close()
    after = (
        textgen._parse_and_convert,
        textgen.copy_context,
        vars(Rule)["parse_conjunctive_query"],
    )
    assert after == before


def test_speedups_are_off_for_unknown_versions(monkeypatch, caplog):
    real = speedups_module.version
    monkeypatch.setattr(
        speedups_module, "version", lambda name: "9.9" if name == "textworld" else real(name)
    )
    before = textgen._parse_and_convert
    with speedups() as are_on:
        assert not are_on
        assert textgen._parse_and_convert is before
    assert "without speed-ups, which do not know textworld 9.9" in caplog.text


# The generator


def files_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def make(folder, *arguments):
    few = ["--games", "6", *SMALL[:4], "--valid_games", "1"]
    assert generate(["--out", str(folder), *few, *arguments]) == 0
    return files_of(folder)


def test_equal_arguments_give_equal_bytes_and_an_interrupted_call_goes_on(tmp_path):
    first = make(tmp_path / "a")
    assert make(tmp_path / "b") == first
    game = next((tmp_path / "b").rglob("game.tw-pddl"))
    shutil.rmtree(game.parent)
    assert make(tmp_path / "b") == first
    assert make(tmp_path / "c", "--seed", "1").keys() != first.keys()


def test_games_of_another_recipe_are_not_mixed(tmp_path, caplog):
    arguments = ["--out", str(tmp_path), "--games", "1", "--valid_games", "0", *SMALL[:4]]
    assert generate(arguments) == 0
    assert generate([*arguments, "--seed", "1"]) == 2
    assert "holds games of another recipe" in caplog.text
    [game] = tmp_path.rglob("game.tw-pddl")
    assert game.parent.parent.name.startswith("pick_and_place_simple-")
