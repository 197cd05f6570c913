"""The environment's own rules, over a scripted simulator (the real one: tests/integration)."""

from types import MappingProxyType

import pytest

from agent_system.environments.env_package.sciworld import env as env_module
from agent_system.environments.env_package.sciworld.env import SciWorldEnv
from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.env_package.sciworld.rename import Renaming

HALL = "This room is called the hallway. In it, you see: \n\tthe agent\n\ta dove egg\n\tan axe\n"
TASK = {"options": {"task_name": "find-animal", "variation": 3}}


class ScriptedSimulator:
    """Answers come from `script`: command -> (answer, score, completed, moves)."""

    task_text = "Find a dove. Move it to the red box in the kitchen."
    script = MappingProxyType(
        {
            "look around": (HALL, 0, False, 0),
            "teleport to kitchen": ("You teleport to the kitchen.", 8, False, 1),
            "focus on dove egg": ("You focus on the dove egg.", 50, False, 2),
            "move dove egg to red box": ("You move the dove egg.", 100, True, 3),
            "focus on axe": ("You focus on the axe.", -100, False, 3),
            "give up": ("It is over.", 50, True, 3),
            "wait": ("You decide to wait.", 8, False, 101),
        }
    )

    def __init__(self, options, **_):
        self.commands = []

    def start(self, *task):
        self.started = task
        self.step("look around")

    def step(self, command):
        self.commands.append(command)
        nothing = ("No known action matches that input.", 0, False, 0)
        answer, self.score, self.is_completed, self.moves = self.script.get(command, nothing)
        return answer

    def look(self):
        return HALL

    def valid_actions(self):
        return ["reset task", "look around", "focus on dove egg"]

    def gold_path(self):
        return ["focus on dove egg"]

    def close(self):
        self.closed = True


@pytest.fixture
def play(monkeypatch):
    """Plays commands with given options; returns the environment and all that it answered."""
    monkeypatch.setattr(env_module, "Simulator", ScriptedSimulator)

    def play(*commands, seed=0, **options):
        env = SciWorldEnv(SciWorldOptions(**options))
        first = env.reset(seed=seed, options={"task": TASK})
        return env, first, [env.step(command) for command in commands]

    return play


def test_reset_starts_the_task(play):
    env, (text, info), _ = play()
    assert env._simulator.started == ("find-animal", 3)
    assert text == HALL
    assert info["task_text"] == ScriptedSimulator.task_text
    assert (info["score"], info["success"], info["moves"]) == (0, False, 0)


def test_the_reward_is_the_change_of_the_score(play):
    _, _, steps = play("teleport to kitchen", "focus on dove egg", "move dove egg to red box")
    assert [step[1] for step in steps] == [8.0, 42.0, 50.0]
    assert [step[2] for step in steps] == [False, False, True]
    assert [step[4]["success"] for step in steps] == [False, False, True]


def test_a_fatal_mistake_ends_the_episode_as_failed(play):
    _, _, [(_, reward, terminated, truncated, info)] = play("focus on axe")
    assert (reward, terminated, truncated) == (-100.0, True, False)
    assert (info["failed"], info["success"], info["lenient_success"]) == (True, False, False)


def test_an_end_without_the_full_score_is_no_success(play):
    _, _, [(_, _, terminated, _, info)] = play("give up")
    assert terminated
    assert (info["success"], info["lenient_success"]) == (False, True)


def test_waiting_past_the_published_limit_succeeds_leniently_only(play):
    _, _, steps = play("wait", "focus on axe")
    assert not steps[0][2]
    assert (steps[0][4]["success"], steps[0][4]["lenient_success"]) == (False, True)
    # the published evaluation ended there, so what follows does not count
    assert steps[1][4]["lenient_success"] is True


@pytest.mark.parametrize(
    "command",
    ["reset task", " Reset  TASK ", "reset the task", "An reset A\ttask the", "\x01reset task\x1b"],
)
def test_the_task_cannot_be_reset(play, command):
    env, _, steps = play("teleport to kitchen", command)
    assert env._simulator.commands[-1] == "teleport to kitchen"
    assert steps[1][0] == "No known action matches that input."
    assert (steps[1][1], steps[1][4]["score"]) == (0.0, 8)


def test_compact_observations_show_the_room_after_a_teleport(play):
    _, (text, info), steps = play("teleport to kitchen", "dance", observation="compact")
    assert text == steps[0][0] == "hallway : axe , dove egg"
    assert steps[1][0] == "invalid action"
    assert info["raw_observation"] == HALL


def test_a_teleport_can_show_the_room_in_full(play):
    _, _, [step] = play("teleport to kitchen", teleport_look=True)
    assert step[0] == HALL


def test_admissible_actions_leave_out_the_reset(play):
    _, (_, info), _ = play(admissible_actions=True)
    assert info["admissible_actions"] == ["focus on dove egg", "look around"]
    assert "admissible_actions" not in play()[1][1]


def test_renaming_is_consistent_and_undone_in_commands(play):
    seed = next(s for s in range(1, 99) if Renaming.draw(s).apply("dove") != "dove")
    renaming = Renaming.draw(seed)
    env, (text, info), steps = play(
        renaming.apply("focus on dove egg"),
        "focus on dove egg",
        seed=seed,
        rename=True,
        admissible_actions=True,
    )
    assert text == renaming.apply(HALL) != HALL
    assert info["task_text"] == renaming.apply(ScriptedSimulator.task_text)
    assert renaming.apply("focus on dove egg") in info["admissible_actions"]
    assert env._simulator.commands[-2] == "focus on dove egg"
    assert steps[0][4]["score"] == 50
    # the old name is now another animal's, or nobody's
    assert env._simulator.commands[-1] != "focus on dove egg"


def test_a_renamed_listing_is_sorted_by_what_is_shown(play):
    for seed in range(1, 20):
        _, (text, _), _ = play(seed=seed, rename=True, observation="compact")
        items = text.split(" : ")[1].split(" , ")
        assert items == sorted(items)


def test_seed_0_keeps_the_names(play):
    assert play(seed=0, rename=True)[1][0] == HALL


@pytest.mark.parametrize("options", [None, {}, {"task": {"options": {"variation": 1}}}])
def test_reset_wants_a_task(play, options):
    env, _, _ = play()
    with pytest.raises(ValueError, match="pass the task as"):
        env.reset(options=options)


def test_gold_paths_have_the_names_that_are_shown(play):
    seed = next(s for s in range(1, 99) if Renaming.draw(s).apply("dove") != "dove")
    _, (_, info), _ = play(seed=seed, rename=True, gold_path=True)
    assert info["gold_path"] == [Renaming.draw(seed).apply("focus on dove egg")]
    assert "gold_path" not in play()[1][1]


def test_a_java_process_has_at_least_one_simulator():
    with pytest.raises(ValueError, match="simulators_per_jvm=0; it has to be at least 1"):
        SciWorldOptions(simulators_per_jvm=0)
