"""Choosing what to show of an episode's past: one interface, three strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from agent_system.config import ContextConfig
from agent_system.types import Turn

CountTokens = Callable[[str], int]  # text -> its number of tokens


class History(Protocol):
    """A choice among the turns played so far."""

    def select(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns to show, oldest first: the last ones of `turns`, perhaps in fewer words."""
        ...


@dataclass(frozen=True)
class LastTurns:
    """The last `length` turns."""

    length: int

    def select(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        return turns[max(len(turns) - self.length, 0) :]


@dataclass(frozen=True)
class TokenBudget:
    """The latest turns that take at most `tokens` together; older ones are dropped whole.

    A turn takes the tokens of its command and of the answer to it.
    """

    tokens: int
    count: CountTokens

    def select(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        room, first = self.tokens, len(turns)
        while first > 0 and (room := room - self._cost(turns[first - 1])) >= 0:
            first -= 1
        return turns[first:]

    def _cost(self, turn: Turn) -> int:
        return self.count(f"> {turn.action.text}\n{turn.observation.strip()}\n")


@dataclass(frozen=True)
class Summary:
    """All turns: the last `length` in full, of older ones the command and some words of the answer.

    `words`: so many first words of each older answer; 0: only the command.
    """

    length: int
    words: int

    def select(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        cut = max(len(turns) - self.length, 0)
        return [*map(self._shortened, turns[:cut]), *turns[cut:]]

    def _shortened(self, turn: Turn) -> Turn:
        words = turn.observation.split()
        if len(words) <= self.words:
            return turn
        kept = " ".join([*words[: self.words], "..."]) if self.words else ""
        return replace(turn, observation=kept)


HISTORIES: Mapping[str, Callable[[ContextConfig, CountTokens], History]] = MappingProxyType(
    {
        "last_turns": lambda config, count: LastTurns(config.history_length),
        "token_budget": lambda config, count: TokenBudget(config.history_tokens, count),
        "summary": lambda config, count: Summary(
            config.history_length, config.history_summary_words
        ),
    }
)


def make_history(config: ContextConfig, count: CountTokens) -> History:
    """The strategy that `env.context.history` names."""
    return HISTORIES[config.history](config, count)
