"""The projection function by the name and shape that users of verl-agent know."""

from __future__ import annotations

from agent_system.environments.projection import parse_think_action


def alfworld_projection(
    actions: list[str], action_pools: list[list[str]] | None = None
) -> tuple[list[str], list[int]]:
    """Model outputs -> commands and, for each, 1 if it followed the think/action format, else 0.

    `action_pools`, the admissible commands of each row, is taken for compatibility only: whether a
    command is admissible is a column of its own.
    """
    parsed = [parse_think_action(text) for text in actions]
    return [action.text for action in parsed], [int(action.is_format_valid) for action in parsed]
