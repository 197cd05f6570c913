"""From messages to the exact tokens a policy sees.

What was sampled is never tokenised again. In the `trajectory` context each prompt is the previous
prompt, the sampled response and the tokens of the new observation:

    prompt(t+1) == prompt(t) + response(t) + observation(t)

so that one row of the training batch holds the whole conversation. In the `turn` context every turn
has a fresh prompt. Both are pure functions of the turns played so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jinja2 import TemplateError

from agent_system.config import ContextConfig
from agent_system.interfaces import PromptBuilder
from agent_system.memory import History, LastTurns
from agent_system.types import Observation, Turn

TOKEN_DTYPE = np.int32

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
    longest = min(len(head), len(tail))
    return next((n for n in range(longest, 0, -1) if np.array_equal(head[-n:], tail[:n])), 0)


@dataclass(frozen=True)
class Prompt:
    """What the engine sees for one turn. `ids`: (T,) int32."""

    ids: np.ndarray
    dropped_turns: int = 0


class Context(Protocol):
    """How a conversation is shown to the policy."""

    def prompt(
        self, task_text: str, turns: Sequence[Turn], observation: Observation
    ) -> Prompt | None:
        """The prompt of turn `len(turns)`, or None when it cannot fit `max_prompt_length`."""
        ...


@dataclass(frozen=True)
class TrajectoryContext:
    """One growing conversation. It is never shortened: that would break the exact prefix."""

    chat: ChatTemplate
    prompts: PromptBuilder
    max_prompt_length: int

    def prompt(
        self, task_text: str, turns: Sequence[Turn], observation: Observation
    ) -> Prompt | None:
        if turns:
            last = turns[-1]
            answer = self.chat.continuation(last.response_ids, self.prompts.next(observation))
            ids = np.concatenate([last.prompt_ids, last.response_ids, answer])
        else:
            system = self.prompts.system(task_text)
            ids = self.chat.opening(system, self.prompts.first(task_text, observation))
        return Prompt(ids) if len(ids) <= self.max_prompt_length else None


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
) -> Context:
    """The context that `env.context.kind` names. Raises ValueError on an unknown one."""
    if config.kind == "trajectory":
        return TrajectoryContext(chat, prompts, max_prompt_length)
    if config.kind == "turn":
        return TurnContext(chat, prompts, max_prompt_length, LastTurns(config.history_length))
    raise ValueError(f"unknown env.context.kind '{config.kind}'; available: trajectory, turn")
