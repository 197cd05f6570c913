"""The reward of an episode, paid at the turn that earned it."""

from __future__ import annotations

from dataclasses import dataclass

from agent_system.config import RewardConfig
from agent_system.types import StepResult

FULL_SCORE = 100.0


@dataclass(frozen=True)
class EpisodeRewardManager:
    """`success` at the turn that wins, plus `score_delta_coef` times the change of the score."""

    config: RewardConfig

    def turn_reward(self, result: StepResult) -> float:
        """The reward of the turn that the environment answered with `result`.

        `result.reward` is the change of the environment's score in points (0-100 in an episode).
        A win ends the episode, so the success reward is paid once, at its last turn.
        """
        won = self.config.success if result.info["success"] else 0.0
        return won + self.config.score_delta_coef * result.reward / FULL_SCORE
