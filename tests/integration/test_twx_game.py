"""TextWorldExpress as it really plays: its games, gold paths, scores, and the contract."""

import pytest

from agent_system.config import PoolConfig, TaskSetConfig
from agent_system.environments.env_package.textworld_express.env import TextWorldExpressEnv
from agent_system.environments.env_package.textworld_express.games import GAMES, parameter_string
from agent_system.environments.env_package.textworld_express.options import (
    TextWorldExpressOptions,
)
from agent_system.environments.env_package.textworld_express.simulator import Simulator
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import get_env_package
from agent_system.environments.testing import check_env

pytest.importorskip("textworld_express")

NAME = "textworld_express/TextWorldExpressEnv"
SEEDS = 2  # of each game, in each of two folds


@pytest.fixture(scope="module")
def simulator():
    simulator = Simulator(heap_mb=128)
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def env():
    env = TextWorldExpressEnv(TextWorldExpressOptions(gold_path=True))
    yield env
    env.close()


def reset(env, game, seed=0, fold="train"):
    coordinates = {"game": game, "fold": fold, "seed": seed}
    return env.reset(options={"task": {"name": game, "options": coordinates, "seed": 5}})


def test_the_table_has_the_simulators_games(simulator):
    server = simulator._java.jvm.textworldexpress.runtime.PythonInterface()
    assert sorted(server.getGameNames()) == sorted(GAMES)


@pytest.mark.parametrize("game", [game for game, ranges in GAMES.items() if ranges])
def test_the_table_has_the_simulators_parameters(simulator, game):
    easy = {"maxDistanceApart": 1} if game == "mapreader" else {}
    for name, (low, high) in GAMES[game].items():
        for value in {low, high}:
            simulator.start(game, parameter_string(game, {**easy, name: value}), "train", 0)
    with pytest.raises(ValueError, match=r"TextWorldExpress refuses .*Unrecognized property name"):
        simulator.start(game, "colour=1", "train", 0)
    with pytest.raises(ValueError, match="TextWorldExpress refuses chess"):
        simulator.start("chess", "", "train", 0)


def test_parameters_that_give_no_game_are_refused_in_one_sentence(simulator):
    with pytest.raises(ValueError, match="finds no mapreader with 'numLocations=1' and seed 0"):
        simulator.start("mapreader", "numLocations=1", "train", 0)


@pytest.mark.parametrize("game", GAMES)
def test_a_task_is_the_same_game_every_time_and_seeds_differ(env, game):
    first = reset(env, game)
    for action in ("look around", first[1]["admissible_actions"][0], "nonsense"):
        env.step(action)
    again = reset(env, game)
    assert (again[0], again[1]["admissible_actions"], again[1]["task_text"]) == (
        first[0],
        first[1]["admissible_actions"],
        first[1]["task_text"],
    )
    starts = {
        (text, tuple(info["admissible_actions"]))
        for text, info in (reset(env, game, seed) for seed in range(4))
    }
    assert len(starts) > 1


def test_a_wrong_command_can_lose(env):
    _, info = reset(env, "simonsays")
    wrong = next(a for a in info["admissible_actions"] if a != info["gold_path"][0])
    _, reward, terminated, truncated, info = env.step(wrong)
    assert (reward, terminated, truncated) == (-100.0, True, False)
    assert (info["score"], info["success"], info["failed"]) == (-100, False, True)


def test_the_score_counts_up_to_a_hundred(env):
    _, info = reset(env, "simonsays")  # five commands, each worth a fifth
    answers = [env.step(command) for command in info["gold_path"]]
    assert [answer[1] for answer in answers] == [20.0] * 5
    assert [answer[2] for answer in answers] == [False] * 4 + [True]
    assert answers[-1][4]["score"] == 100 and answers[-1][4]["success"] is True


def test_a_reset_without_a_task_says_how(env):
    with pytest.raises(ValueError, match=r'"game": "coin"'):
        env.reset()


@pytest.mark.slow
def test_gold_paths_win_and_waiting_does_not(play_scripts):
    env = get_env_package(NAME).bind({"gold_path": True})
    tasks = [t for fold in ("train", "test") for t in env.tasks(TaskSetConfig(f"{fold}:{SEEDS}"))]
    assert len(tasks) == 2 * 8 * SEEDS
    pool = EnvPool(env, PoolConfig(slots_per_worker=2))
    try:
        won = play_scripts(pool, tasks, lambda task, info: info["gold_path"])
        waited = play_scripts(pool, tasks, lambda task, info: ["look around"] * 30)
    finally:
        pool.close()
    assert all(episode.is_success for episode in won)
    assert not any(episode.is_success for episode in waited)


@pytest.mark.slow
def test_it_keeps_the_contract():
    report = check_env(
        NAME,
        {"gold_path": True},
        task_lists=("train", "dev", "test"),
        tasks_per_list=8,  # one of each game
        idle_action="look around",
        is_refusal=lambda text: text.startswith("Unknown action"),
    )
    assert report.gold_paths == 24
