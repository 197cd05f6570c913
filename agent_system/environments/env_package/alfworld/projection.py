"""The projection function by the name and shape that users of verl-agent know."""

from __future__ import annotations

from agent_system.environments.projection import project


def alfworld_projection(
    actions: list[str], action_pools: list[list[str]] | None = None
) -> tuple[list[str], list[int]]:
    """See `project`. `action_pools`, the admissible commands of each row, changes nothing: whether
    a command is admissible is a question of its own."""
    return project(actions)
