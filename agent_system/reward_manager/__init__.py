"""What a turn is worth."""

from agent_system.reward_manager.episode import EpisodeRewardManager

__all__ = ["EpisodeRewardManager"]
