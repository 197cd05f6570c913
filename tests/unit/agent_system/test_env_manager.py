"""The synchronous managers: shapes, histories, groups, and rows that end or fail."""

import sys

import numpy as np
import pytest

from agent_system.config import ActionFormatConfig, ContextConfig, EnvConfig, PoolConfig
from agent_system.environments.base import EnvironmentManagerBase
from agent_system.environments.env_manager import SciWorldEnvironmentManager
from agent_system.environments.env_package.sciworld.projection import sciworld_projection
from agent_system.environments.pool import EnvPool
from agent_system.environments.tasks import TaskSampler
from agent_system.environments.vector_env import PoolVectorEnv
from agent_system.types import Task

MODULE = """
import os
from dataclasses import dataclass
from agent_system.environments.registry import EnvPackage

@dataclass(frozen=True)
class Options:
    pass

class CountingEnv:
    def reset(self, *, seed, options):
        self.name, self.count = options["task"]["name"], 0
        return f"{self.name} 0", {"task_text": "Count.", "score": 0, "success": False}

    def step(self, action):
        if action == "die":
            os._exit(1)
        self.count += 1
        over = action == "stop"
        info = {"task_text": "Count.", "score": self.count, "success": over}
        return f"{self.name} {self.count}", 1.0, over, False, info

    def close(self): pass

def make_env(options):
    return CountingEnv()

PACKAGE = EnvPackage("counting", "counting_env:make_env", Options, None, None, lambda: None)
"""


class TwoRooms:
    """Two environments that answer with the command they got."""

    def reset(self, tasks):
        self.tasks = tasks
        return ["room a", "room b"], [{"task_text": "Find a."}, {"task_text": "Find b."}]

    def step(self, commands):
        texts = [f"did {command}" for command in commands]
        return texts, [1.0, 0.0], [False, True], [{"success": False}, {"success": True}]

    def close(self):
        self.closed = True


def says(command):
    return f"<think>x</think><action>{command}</action>"


def test_the_base_class_passes_texts_through():
    manager = EnvironmentManagerBase(TwoRooms(), sciworld_projection, EnvConfig())
    observations, _ = manager.reset()
    assert observations == {
        "text": ["room a", "room b"],
        "image": None,
        "anchor": ["room a", "room b"],
    }
    observations, rewards, dones, infos = manager.step([says("go hall"), "nonsense"])
    assert observations["text"] == ["did go hall", "did "]
    assert (rewards.dtype, rewards.tolist()) == (np.float32, [1.0, 0.0])
    assert (dones.dtype, dones.tolist()) == (np.bool_, [False, True])
    assert [int(info["is_action_valid"]) for info in infos] == [1, 0]
    manager.close()
    assert manager.envs.closed


def test_success_is_that_of_the_last_info():
    manager = EnvironmentManagerBase(TwoRooms(), sciworld_projection, EnvConfig())
    lost, won = {"success": False}, {"success": True}
    rates = manager.success_evaluator(total_infos=[[lost, won], [lost, lost]])
    assert rates["success_rate"].tolist() == [1.0, 0.0]


def test_prompts_hold_the_rules_the_task_and_the_last_turns():
    config = EnvConfig(context=ContextConfig(kind="turn", history_length=1))
    manager = SciWorldEnvironmentManager(TwoRooms(), sciworld_projection, config)
    first = manager.reset()[0]["text"][0]
    assert first.startswith("You are an agent")
    assert first.endswith("Task: Find a.\n\nObservation:\nroom a")
    manager.step([says("go hall"), says("go hall")])
    text = manager.step([says("open jar"), says("open jar")])[0]["text"][1]
    assert text.endswith(
        "Task: Find b.\n\nCommands so far (the last 1 of 2):\n> open jar\n\n"
        "Observation:\ndid open jar"
    )
    assert manager.reset()[0]["text"][0] == first  # a new episode has no history


def test_plain_prompts_have_no_rules():
    config = EnvConfig(action_format=ActionFormatConfig(kind="plain"))
    manager = SciWorldEnvironmentManager(TwoRooms(), sciworld_projection, config)
    assert manager.reset()[0]["text"] == ["Find a.\nroom a", "Find b.\nroom b"]


@pytest.fixture
def vector_env(tmp_path, monkeypatch):
    """Two groups of two counting environments."""
    (tmp_path / "counting_env.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "counting_env", raising=False)
    pool = EnvPool("counting_env:PACKAGE", {}, PoolConfig(slots_per_worker=4))
    envs = PoolVectorEnv(pool, TaskSampler([Task("a", {}), Task("b", {})], seed=0), group_size=2)
    yield envs
    envs.close()


def test_members_of_a_group_play_the_same_task(vector_env):
    texts, infos = vector_env.reset(None)
    assert texts[0] == texts[1] and texts[2] == texts[3] and texts[0] != texts[2]
    assert [info["score"] for info in infos] == [0, 0, 0, 0]


def test_rows_end_and_fail_on_their_own(vector_env):
    tasks = [Task(name, {}) for name in "wxyz"]
    vector_env.reset(tasks)
    _, rewards, dones, _ = vector_env.step(["go", "stop", "die", "go"])
    assert (rewards, dones) == ([1.0, 1.0, 0.0, 1.0], [False, True, True, False])
    texts, rewards, dones, infos = vector_env.step(["go"] * 4)
    # a finished row repeats its answer and earns nothing more
    assert texts == ["w 2", "x 1", "", "z 2"]
    assert rewards == [1.0, 0.0, 0.0, 1.0]
    assert dones == [False, True, True, False]
    assert [info["success"] for info in infos] == [False, True, False, False]
    assert "exit code 1" in infos[2]["env_error"]
    assert vector_env.reset(tasks)[0] == ["w 0", "x 0", "y 0", "z 0"]


def test_wrong_counts_are_refused(vector_env):
    with pytest.raises(ValueError, match="1 tasks for 4 environments"):
        vector_env.reset([Task("a", {})])
    with pytest.raises(ValueError, match="2 commands for 4 environments"):
        vector_env.step(["go", "go"])
