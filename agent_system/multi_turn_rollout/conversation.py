"""From messages to the exact tokens a policy sees.

What was sampled is never tokenised again. In the `trajectory` context each prompt is the previous
prompt, the sampled response and the tokens of the new observation:

    prompt(t+1) == prompt(t) + response(t) + observation(t)

so that one row of the training batch holds the whole conversation. One that outgrows the prompt
budget is opened anew without its oldest turns; each such *segment* is a row. In the `turn` context
every turn has a fresh prompt. Both are pure functions of the turns played so far.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from agent_system.config import ContextConfig
from agent_system.interfaces import Chat, PromptBuilder
from agent_system.memory import History, make_history
from agent_system.types import Observation, Turn

TOKEN_DTYPE = np.int32

# A conversation that is too long keeps turns for half of the room beside its opening; the rest is
# room to grow. Keeping all that fits would cost a prefill without a cached prefix, and a training
# row, at every turn from then on. Half of the whole budget would often hold no turn at all: the
# system and task text alone can take as much.
KEPT_SHARE = 0.5


@dataclass(frozen=True)
class Prompt:
    """What the engine sees for one turn. `ids`: (T,) int32.

    `dropped_turns`: turns of the history at hand that this prompt leaves out for lack of room. At
    hand is what `History` chose for this prompt (`turn`), or the conversation up to here
    (`trajectory`; a turn dropped earlier is no longer in it and is not counted again).
    `opens_row`: the turn before is shown without its reasoning, so this prompt does not go on
    from it.
    """

    ids: np.ndarray
    dropped_turns: int = 0
    opens_row: bool = False


class PromptContext(Protocol):
    """How a conversation is shown to the policy (`env.context`)."""

    def prompt(
        self, task_text: str, turns: Sequence[Turn], observation: Observation
    ) -> Prompt | None:
        """The prompt of turn `len(turns)`, or None when it cannot fit `max_prompt_length`."""
        ...


def segments(turns: Sequence[Turn]) -> list[Sequence[Turn]]:
    """The turns of a `trajectory` context, cut where a prompt dropped turns or reasoning.

    Within a segment every prompt is the one before, its response and an observation.
    """
    starts = [
        i for i, turn in enumerate(turns) if i == 0 or turn.dropped_turns > 0 or turn.opens_row
    ]
    return [turns[start:end] for start, end in pairwise([*starts, len(turns)])]


@dataclass(frozen=True)
class TrajectoryContext:
    """One growing conversation. One that is too long goes on without its oldest turns."""

    chat: Chat
    prompts: PromptBuilder
    max_prompt_length: int
    keeps_reasoning: bool = True

    def prompt(
        self, task_text: str, turns: Sequence[Turn], observation: Observation
    ) -> Prompt | None:
        if not turns:
            ids = self._opening(task_text, observation)
            return Prompt(ids) if len(ids) <= self.max_prompt_length else None
        last = turns[-1]
        answer = self.chat.continuation(last.response_ids, self.prompts.next(observation))
        ids = np.concatenate([self._shown(last), answer])
        if len(ids) <= self.max_prompt_length:
            return Prompt(ids, opens_row=not self.keeps_reasoning)
        return self._shortened(ids, task_text, turns, observation)

    def _shown(self, turn: Turn) -> np.ndarray:
        """Prompt and response, as the next prompt begins."""
        if self.keeps_reasoning:
            return np.concatenate([turn.prompt_ids, turn.response_ids])
        return self.chat.without_reasoning(turn.prompt_ids, turn.response_ids)

    def _opening(self, task_text: str, observation: Observation) -> np.ndarray:
        system = self.prompts.system(task_text)
        return self.chat.opening(system, self.prompts.first(task_text, observation))

    def _shortened(
        self, ids: np.ndarray, task_text: str, turns: Sequence[Turn], observation: Observation
    ) -> Prompt | None:
        """`ids` with a new opening in place of everything before the response of some turn `first`.

        The opening shows the task and what was observed before that turn (without the actions that
        were admissible then); what follows are the tokens of `ids` as they are.
        """
        # Where the response of each turn begins in `ids`; those before turns were dropped lie
        # elsewhere.
        begins = [*(self._response_start(turn) for turn in turns), len(ids)]
        start = max((i for i, turn in enumerate(turns) if turn.dropped_turns > 0), default=0)
        dropped_before = sum(turn.dropped_turns for turn in turns)
        oldest = max(start, dropped_before + 1)
        seen = [*(Observation(turn.observation) for turn in turns[:-1]), observation]

        def opening(first: int) -> np.ndarray:
            return self._opening(task_text, seen[first - 1])

        def fits(first: int, share: float) -> bool:
            room = self.max_prompt_length - len(opening(first))
            return len(ids) - begins[first] <= share * room

        first = _least(range(oldest, len(turns)), lambda first: fits(first, KEPT_SHARE))
        if first is None:  # the last turn alone takes more: keep what fits, in the end nothing
            first = _least(range(oldest, len(turns) + 1), lambda first: fits(first, 1.0))
        if first is None:
            return None
        kept = np.concatenate([opening(first), ids[begins[first] :]])
        return Prompt(kept, first - dropped_before)

    def _response_start(self, turn: Turn) -> int:
        nothing = turn.response_ids[:0]
        return len(self._shown(replace(turn, response_ids=nothing)))


def _least(candidates: range, fits: Callable[[int], bool]) -> int | None:
    """The least candidate that fits, by bisection: where one fits, every greater one does."""
    position = bisect_left(candidates, True, key=fits)
    return candidates[position] if position < len(candidates) else None


@dataclass(frozen=True)
class TurnContext:
    """A fresh prompt each turn, with the turns that `history` chooses.

    A prompt that is too long loses its oldest turns of history, never the system or task text.
    """

    chat: Chat
    prompts: PromptBuilder
    max_prompt_length: int
    history: History

    def prompt(
        self, task_text: str, turns: Sequence[Turn], observation: Observation
    ) -> Prompt | None:
        system = self.prompts.system(task_text)
        chosen = self.history.select(turns)
        for dropped in range(len(chosen) + 1):
            user = self.prompts.turn(task_text, chosen[dropped:], observation, len(turns))
            ids = self.chat.opening(system, user)
            if len(ids) <= self.max_prompt_length:
                return Prompt(ids, dropped)
        return None


def make_context(
    config: ContextConfig, chat: Chat, prompts: PromptBuilder, max_prompt_length: int
) -> PromptContext:
    """The context that `env.context.kind` names, with the strategy of `env.context.history`.

    Raises ValueError where a strategy would have no effect.
    """
    history = make_history(config, chat.count)
    if config.kind == "turn":
        if config.reasoning != ContextConfig.reasoning:
            raise ValueError(
                f"env.context.reasoning={config.reasoning} has no effect with kind=turn, whose "
                "prompts show no replies; leave it unset"
            )
        return TurnContext(chat, prompts, max_prompt_length, history)
    if config.history != ContextConfig.history:
        raise ValueError(
            f"env.context.history={config.history} needs fresh prompts, but kind=trajectory shows "
            "the conversation as it grows; set env.context.kind=turn"
        )
    keeps_reasoning = config.reasoning == "keep"
    return TrajectoryContext(chat, prompts, max_prompt_length, keeps_reasoning)
