"""The projection function by the name and shape that users of verl-agent know."""

from __future__ import annotations

from agent_system.environments.projection import project


def sciworld_projection(actions: list[str]) -> tuple[list[str], list[int]]:
    """See `project`."""
    return project(actions)
