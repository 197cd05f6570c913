"""The contract test kit: it passes a sound environment and names what is wrong with others."""

import json
import sys

import pytest

from agent_system.config import PoolConfig
from agent_system.environments.testing import EnvContractError, check_env
from agent_system.environments.text_game import Reply, TextGame, game_package

# One game with faults to switch on by name, in a module that other processes can import.
MODULE = """
import os, time
from dataclasses import dataclass
from agent_system.environments.text_game import Reply, TextGame, game_package

@dataclass(frozen=True)
class Faults:
    fault: str = ""

class Door(TextGame):
    task_text = "Open the door."
    episodes = 0

    def start(self, task):
        self.episodes += 1
        self.turns = 0
        if self.options.fault == "no task text":
            self.task_text = ""
        if self.options.fault == "state between episodes":
            return Reply(f"Door number {self.episodes}.", actions=("open", "wait"))
        if self.options.fault == "unwritable action":
            return Reply("A door.", actions=("open", "say  'hello'\\n"))
        if self.options.fault == "start":
            raise RuntimeError("the door is missing")
        if self.options.fault == "won at once":
            return Reply("A door.", success=True)
        return Reply("A door.", actions=("open", "wait"))

    def play(self, command):
        self.turns += 1
        fault = self.options.fault
        if fault == "long commands crash" and len(command) > 5000:
            raise RuntimeError("too long")
        if fault == "control characters kill" and "\\x00" in command:
            os._exit(3)
        if fault == "hangs" and command == "":
            time.sleep(60)
        if fault == "waiting wins" and self.turns == 9:
            return Reply("You waited.", success=True)
        if fault == "empty wins" and not command:
            return Reply("Open.", success=True)
        if fault == "score out of range":
            return Reply("A door.", score=700)
        if fault == "refuses":
            return Reply("You cannot do that.", actions=("open", "wait"))
        if command == "open":
            return Reply("It is open.", success=True, score=60.0 if fault == "low score" else None)
        return Reply("Nothing happens.", actions=("open", "wait"))

    def reset(self, *, seed=None, options=None):
        text, info = super().reset(seed=seed, options=options)
        if self.options.fault == "cannot be sent":
            info["callback"] = lambda: None
        return text, info

    def step(self, action):
        text, reward, terminated, truncated, info = super().step(action)
        if self.options.fault == "wrong reward":
            reward += 1.0
        if self.options.fault == "odd types":
            terminated, info["success"] = int(terminated), "no"
        if self.options.fault == "goes on after success":
            terminated = False
        return text, reward, terminated, truncated, info

PACKAGE = game_package(Door, rules="A door.", options=Faults)
"""


@pytest.fixture
def door(tmp_path, monkeypatch):
    (tmp_path / "faulty_door.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty_door", raising=False)
    return "faulty_door:PACKAGE"


def check(door, fault="", **kwargs):
    kwargs = {
        "tasks_per_list": 1,
        "gold_path": lambda task, info: ["open"],
        "is_refusal": lambda text: text == "You cannot do that.",
        "pool": PoolConfig(step_timeout_s=2.0, max_consecutive_replacements=1),
        **kwargs,
    }
    return check_env(door, {"fault": fault}, **kwargs)


def test_a_sound_environment_passes(door):
    report = check(door, task_lists=("train:5", "test"), tasks_per_list=2)
    assert report.gold_paths == 4
    assert report.episodes > 20 and report.steps > 200  # four tasks waited for 50 steps each
    assert 0 < report.slowest_step_s < 2


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("no task text", "info['task_text'] is ''; it has to be the task in words"),
        ("state between episodes", "two resets of it show different observations"),
        ("unwritable action", "no model output is read as the admissible actions"),
        ("won at once", "info['success'] is True before the first step"),
        ("long commands crash", "of 10000 characters is fatal"),
        ("control characters kill", r"the action '\x00' is fatal"),
        ("hangs", "no answer within 2 s"),
        ("waiting wins", "'' 9 times solves it"),
        ("empty wins", "the nonsense '' solves it"),
        ("score out of range", "info['score'] is 700.0; it has to be a number of points"),
        ("refuses", "is refused"),
        ("low score", "a solved task has the score 100"),
        ("wrong reward", "the reward is the change of info['score']"),
        ("odd types", "terminated is 0; it has to be True or False"),
        ("goes on after success", "a solved task has ended"),
        ("cannot be sent", "cannot be sent between processes"),
    ],
)
def test_every_fault_is_named(door, fault, problem):
    with pytest.raises(EnvContractError) as caught:
        check(door, fault)
    assert any(problem in line for line in caught.value.problems), str(caught.value)


def test_a_gold_path_that_does_not_win_is_named(door):
    with pytest.raises(EnvContractError, match="its gold path of 2 commands does not solve it"):
        check(door, gold_path=lambda task, info: ["wait", "wait"])


def test_an_environment_that_cannot_start_a_task_gives_its_own_error(door):
    with pytest.raises(RuntimeError, match="the door is missing"):
        check(door, "start")


def test_wrong_settings_are_the_callers(door):
    with pytest.raises(ValueError, match="unknown key 'colour'"):
        check_env(door, {"colour": "red"})
    with pytest.raises(ValueError, match="unknown task list 'L0_train'"):
        check(door, task_lists=("L0_train",))
    with pytest.raises(ValueError, match="is of type ABCMeta; name an EnvPackage"):
        check_env("faulty_door:Door")


class Plain(TextGame):
    task_text = "Do nothing."

    def start(self, task):
        return Reply(task.name)

    def play(self, command):
        return Reply(command, over=command == "stop", score=10.0)


def test_a_text_game_is_an_environment():
    game = Plain()
    task = {"name": "easy", "options": {"seed": 1}, "seed": 0}
    info = {"score": 0.0, "success": False, "task_text": "Do nothing."}
    assert game.reset(options={"task": task}) == ("easy", info)
    assert game.step("go") == ("go", 10.0, False, False, {**info, "score": 10.0})
    assert game.step("stop") == ("stop", 0.0, True, False, {**info, "score": 10.0})
    with pytest.raises(ValueError, match="pass the task as options"):
        game.reset()


def test_packages_need_a_class_that_others_can_import():
    class Local(Plain):
        pass

    with pytest.raises(ValueError, match="cannot be imported by the environment processes"):
        game_package(Local, rules="")


def test_the_tasks_of_a_game_can_be_kept_in_a_file(door, tmp_path):
    rows = [{"name": "Door", "options": {"seed": 7}}]
    (tmp_path / "doors.json").write_text(json.dumps(rows))
    check(door, task_lists=(str(tmp_path / "doors.json"),))
