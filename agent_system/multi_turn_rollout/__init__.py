"""The rollout loop: episodes in, trajectories with exact tokens out."""

from agent_system.multi_turn_rollout.collector import TrajectoryCollector

__all__ = ["TrajectoryCollector"]
