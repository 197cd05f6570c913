"""Rollout engines and the group of rollout workers."""
