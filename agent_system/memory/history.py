"""Choosing what to show of an episode's past. A token budget can be another `History`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent_system.types import Turn


class History(Protocol):
    """A choice among the turns played so far."""

    def select(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns to show, oldest first."""
        ...


@dataclass(frozen=True)
class LastTurns:
    """The last `length` turns. Raises ValueError when `length` is negative."""

    length: int

    def __post_init__(self) -> None:
        if self.length < 0:
            raise ValueError(f"history_length={self.length}; it has to be at least 0")

    def select(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        return turns[max(len(turns) - self.length, 0) :]
