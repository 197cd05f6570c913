"""The base class that managers written for verl-agent extend: shapes, types, and success."""

import numpy as np

from agent_system.environments.base import EnvironmentManagerBase
from agent_system.environments.env_package.sciworld.projection import sciworld_projection


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
    manager = EnvironmentManagerBase(TwoRooms(), sciworld_projection, None)
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
    manager = EnvironmentManagerBase(TwoRooms(), sciworld_projection, None)
    lost, won = {"success": False}, {"success": True}
    rates = manager.success_evaluator(total_infos=[[lost, won], [lost, lost]])
    assert rates["success_rate"].tolist() == [1.0, 0.0]


def test_a_manager_writes_prompts_of_its_own():
    class Loud(EnvironmentManagerBase):
        def build_text_obs(self, texts):
            return [f"{self.config}{text.upper()}" for text in texts]

    manager = Loud(TwoRooms(), sciworld_projection, "> ")
    observations, _ = manager.reset(["tasks"])
    assert manager.envs.tasks == ["tasks"]
    assert observations["text"] == ["> ROOM A", "> ROOM B"]
    assert observations["anchor"] == ["room a", "room b"]
