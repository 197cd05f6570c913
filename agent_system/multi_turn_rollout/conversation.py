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
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from jinja2 import TemplateError

from agent_system.config import ContextConfig
from agent_system.interfaces import PromptBuilder
from agent_system.memory import History, make_history
from agent_system.types import Observation, Turn

TOKEN_DTYPE = np.int32

# A conversation that is too long keeps turns for half of the room beside its opening; the rest is
# room to grow. Keeping all that fits would cost a prefill without a cached prefix, and a training
# row, at every turn from then on. Half of the whole budget would often hold no turn at all: the
# system and task text alone can take as much.
KEPT_SHARE = 0.5

# Stands for a model's reply in the dummy conversation that a continuation is cut from.
_REPLY = "0reply0"


class ChatTemplate:
    """A tokenizer's chat template as two operations: open a conversation, and continue it."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a Hugging Face tokenizer.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer '{tokenizer.name_or_path}' has no chat template to write messages "
                "with; use an instruct model or put a chat_template.jinja beside its tokenizer"
            )
        self._tokenizer = tokenizer

    def opening(self, system: str | None, user: str) -> np.ndarray:
        """Tokens up to the first response, (T,). Raises ValueError when the template refuses."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        return self._encode(self._render([*messages, {"role": "user", "content": user}]))

    def continuation(self, response_ids: np.ndarray, user: str) -> np.ndarray:
        """Tokens between a sampled response and the next one, (T,).

        They hold what the template puts after a reply (the end-of-turn token, a line break), the
        user message and the next generation prompt. What of this the policy has sampled itself is
        left out: normally the end-of-turn token, nothing after a cut by length or stop string.

        Raises:
            ValueError: the template refuses the conversation, or loses its replies.
        """
        rendered = self._render(
            [
                {"role": "user", "content": "-"},
                {"role": "assistant", "content": _REPLY},
                {"role": "user", "content": user},
            ]
        )
        _, found, after_reply = rendered.partition(_REPLY)
        if not found:
            raise ValueError(
                f"the chat template of '{self._tokenizer.name_or_path}' drops or rewrites earlier "
                "replies; set env.context.kind=turn or use another template"
            )
        ids = self._encode(after_reply)
        return ids[_overlap(response_ids, ids) :]

    def decode(self, ids: np.ndarray) -> str:
        """The text of a response, without special tokens."""
        return self._tokenizer.decode(
            ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self._encode(text))

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"the chat template of '{self._tokenizer.name_or_path}' refuses a conversation of "
                f"{roles} ({error}); put another chat_template.jinja beside its tokenizer"
            ) from error

    def _encode(self, text: str) -> np.ndarray:
        # The template writes BOS and the like itself; the tokenizer must not add them once more.
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False), TOKEN_DTYPE)


def _overlap(head: np.ndarray, tail: np.ndarray) -> int:
    """Length of the longest end of `head` that is also the beginning of `tail`."""
    head = head[max(len(head) - len(tail), 0) :]
    starts = np.flatnonzero(head == tail[0]) if len(tail) else ()
    ends = (head[start:] for start in starts)
    return next((len(end) for end in ends if np.array_equal(end, tail[: len(end)])), 0)


@dataclass(frozen=True)
class Prompt:
    """What the engine sees for one turn. `ids`: (T,) int32.

    `dropped_turns`: turns of the history at hand that this prompt leaves out for lack of room. At
    hand is what `History` chose for this prompt (`turn`), or the conversation up to here
    (`trajectory`; a turn dropped earlier is no longer in it and is not counted again).
    """

    ids: np.ndarray
    dropped_turns: int = 0


class PromptContext(Protocol):
    """How a conversation is shown to the policy (`env.context`)."""

    def prompt(
        self, task_text: str, turns: Sequence[Turn], observation: Observation
    ) -> Prompt | None:
        """The prompt of turn `len(turns)`, or None when it cannot fit `max_prompt_length`."""
        ...


def segments(turns: Sequence[Turn]) -> list[Sequence[Turn]]:
    """The turns of a `trajectory` context, cut where a prompt dropped turns.

    Within a segment every prompt is the one before, its response and an observation.
    """
    starts = [i for i, turn in enumerate(turns) if i == 0 or turn.dropped_turns > 0]
    return [turns[start:end] for start, end in pairwise([*starts, len(turns)])]


@dataclass(frozen=True)
class TrajectoryContext:
    """One growing conversation. One that is too long goes on without its oldest turns."""

    chat: ChatTemplate
    prompts: PromptBuilder
    max_prompt_length: int

    def prompt(
        self, task_text: str, turns: Sequence[Turn], observation: Observation
    ) -> Prompt | None:
        if not turns:
            ids = self._opening(task_text, observation)
            return Prompt(ids) if len(ids) <= self.max_prompt_length else None
        last = turns[-1]
        answer = self.chat.continuation(last.response_ids, self.prompts.next(observation))
        ids = np.concatenate([last.prompt_ids, last.response_ids, answer])
        if len(ids) <= self.max_prompt_length:
            return Prompt(ids)
        return self._shortened(ids, task_text, turns, observation)

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
        # Where the response of each turn begins in `ids`; those of earlier segments lie elsewhere.
        begins = [*(len(turn.prompt_ids) for turn in turns), len(ids)]
        segment_start = len(turns) - len(segments(turns)[-1])
        dropped_before = sum(turn.dropped_turns for turn in turns)
        oldest = max(segment_start, dropped_before + 1)
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


def _least(candidates: range, fits: Callable[[int], bool]) -> int | None:
    """The least candidate that fits, by bisection: where one fits, every greater one does."""
    position = bisect_left(candidates, True, key=fits)
    return candidates[position] if position < len(candidates) else None


@dataclass(frozen=True)
class TurnContext:
    """A fresh prompt each turn, with the turns that `history` chooses.

    A prompt that is too long loses its oldest turns of history, never the system or task text.
    """

    chat: ChatTemplate
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
    config: ContextConfig, chat: ChatTemplate, prompts: PromptBuilder, max_prompt_length: int
) -> PromptContext:
    """The context that `env.context.kind` names, with the strategy of `env.context.history`.

    Raises ValueError where a strategy would have no effect.
    """
    history = make_history(config, chat.count)
    if config.kind == "turn":
        return TurnContext(chat, prompts, max_prompt_length, history)
    if config.history != ContextConfig.history:
        raise ValueError(
            f"env.context.history={config.history} needs fresh prompts, but kind=trajectory shows "
            "the conversation as it grows; set env.context.kind=turn"
        )
    return TrajectoryContext(chat, prompts, max_prompt_length)
