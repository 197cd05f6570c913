"""The reward of a turn."""

import pytest

from agent_system.config import RewardConfig
from agent_system.rewards import EpisodeRewardManager
from agent_system.types import Observation, StepResult


def answer(delta, success=False):
    return StepResult(Observation(""), delta, success, False, {"score": 0, "success": success})


@pytest.mark.parametrize(
    ("config", "delta", "success", "expected"),
    [
        (RewardConfig(), 25.0, False, 0.0),
        (RewardConfig(), 25.0, True, 10.0),
        # 1 + 2 * 25/100 = 1.5
        (RewardConfig(success=1.0, score_delta_coef=2.0), 25.0, True, 1.5),
        # a fatal mistake at score 8: 2 * -108/100 = -2.16
        (RewardConfig(success=1.0, score_delta_coef=2.0), -108.0, False, -2.16),
    ],
)
def test_turn_reward(config, delta, success, expected):
    assert EpisodeRewardManager(config).turn_reward(answer(delta, success)) == expected


def test_an_episode_earns_the_success_reward_once():
    rewards = EpisodeRewardManager(RewardConfig(success=10.0, score_delta_coef=1.0))
    turns = [answer(0.0), answer(17.0), answer(83.0, success=True)]
    # 0 + 0.17 + (10 + 0.83)
    assert sum(rewards.turn_reward(turn) for turn in turns) == pytest.approx(11.0)
