"""A tokenizer's chat template as exact tokens: for rollouts, for cloning and for what ends a reply.

What a message says never becomes one of the template's own markers: a marker that `chat_text.py`
has broken up is encoded as the characters that it is. Shapes: T tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from verl.workers.chat_text import ANSWER, BREAK, FORMAT_TAGS, REPLY, ChatText, Message, message

TOKEN_DTYPE = np.int32

# What a generation prompt may write for the policy and an earlier reply does not show.
_GIVEN_REASONING = re.compile(r"(?:<think>\s*(?:</think>\s*)?)?\Z")


class ChatTemplate:
    """Opens a conversation, continues it after a sampled reply, and reads replies."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        variables: Mapping[str, Any] | None = None,
        date: str | None = None,
        end_ids: Collection[int] = (),
    ) -> None:
        """
        Args:
            variables, date: see `ChatText`.
            end_ids: tokens at which the model ends replies, besides those of the tokenizer and
                the template.

        Raises:
            ValueError: the tokenizer has no chat template, or the template reads no such variable.
        """
        self.tokenizer = tokenizer
        self.text = ChatText(tokenizer, variables=variables, date=date)
        self._configured_end_ids = frozenset(end_ids)

    @property
    def date(self) -> str:
        """ISO; what the template takes for today."""
        return self.text.date

    @property
    def opens_reasoning(self) -> bool:
        """Whether the generation prompt ends within `<think>`."""
        return self.text.opens_reasoning

    def has_markers(self, text: str) -> bool:
        """Whether it spells one of the template's markers."""
        return self.text.has_markers(text)

    # --- conversations --------------------------------------------------------------------------

    def opening(self, system: str | None, user: str) -> np.ndarray:
        """Tokens up to the first response, (T,). Raises ValueError when the template refuses."""
        messages = [] if system is None else [message("system", system)]
        return self.start([*messages, message("user", user)])

    def start(self, messages: Sequence[Message]) -> np.ndarray:
        """The same for any messages before the first reply."""
        return self._encode(self.text.render(messages))

    def continuation(self, response_ids: np.ndarray, user: str) -> np.ndarray:
        """Tokens between a sampled response and the next one, (T,). See `resume`."""
        return self.resume(response_ids, [message("user", user)])

    def resume(self, response_ids: np.ndarray, messages: Sequence[Message]) -> np.ndarray:
        """Tokens between a sampled response and the next one, (T,), with `messages` in between.

        They hold what the template puts after a reply (the end-of-turn token, a line break), the
        messages and the next generation prompt. What of this the policy has sampled itself is
        left out: normally the end-of-turn token, nothing after a cut by length or stop string.

        Raises:
            ValueError: the template refuses the conversation, or loses its replies.
        """
        ids = self._encode(self.text.after_reply(messages))
        return ids[self._sampled(response_ids, ids) :]

    def reply(self, content: str) -> np.ndarray:
        """A reply as a policy would sample it, with the end token if the template has one, (T,).

        Raises:
            ValueError: the template does not write all of it after its generation prompt.
        """
        return np.concatenate([self._encode(self.text.reply(content)), self._closing])

    def without_reasoning(self, prompt_ids: np.ndarray, response_ids: np.ndarray) -> np.ndarray:
        """Prompt and response as later prompts show them where reasoning is dropped, (T,).

        Up to its last `</think>` the response is left out, and so is what the prompt's end has of
        the reasoning. Reasoning that was never closed stays.
        """
        opener = self._tokens(_GIVEN_REASONING.findall(self.text.reply_prefix)[0])
        if opener and prompt_ids[-len(opener) :].tolist() == opener:
            prompt_ids = prompt_ids[: -len(opener)]
        return np.concatenate([prompt_ids, response_ids[self._reasoning_length(response_ids) :]])

    def _reasoning_length(self, ids: np.ndarray) -> int:
        """Tokens up to the last `</think>`, and the blank ones behind it."""

        def closed(length: int) -> int:
            return self._decoded(ids[:length]).lower().count("</think>")

        if not closed(len(ids)):
            return 0
        length = bisect_left(range(len(ids)), closed(len(ids)), key=closed)
        while length < len(ids) and self._decoded(ids[length : length + 1]).isspace():
            length += 1
        return length

    def encode(self, text: str) -> np.ndarray:
        """A text by itself, (T,): none of the template's markers comes of it."""
        return self._encode(self.text.as_text(text))

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.encode(text))

    def decode(self, ids: np.ndarray) -> str:
        """The text of a response, all of it but the end and padding tokens behind it."""
        length = len(ids)
        while length and int(ids[length - 1]) in self._silent_ids:
            length -= 1
        return self._decoded(ids[:length])

    # --- what ends a reply ----------------------------------------------------------------------

    @cached_property
    def end_id(self) -> int | None:
        """The token that the template writes first after a reply. None where it writes none."""
        return next((token for token in self._end if token in self.text.markers), None)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends a reply."""
        ends = (self.end_id, cast("int | None", self.tokenizer.eos_token_id))
        return self._configured_end_ids.union(token for token in ends if token is not None)

    @cached_property
    def _silent_ids(self) -> frozenset[int]:
        """Those, and what pads, but for tags of the policy's own."""
        padding = self.tokenizer.pad_token_id
        ids = self.end_ids if padding is None else self.end_ids | {cast(int, padding)}
        return frozenset(
            token for token in ids if self.tokenizer.convert_ids_to_tokens(token) not in FORMAT_TAGS
        )

    @cached_property
    def _end(self) -> list[int]:
        """What the template writes after a reply, whatever comes then."""
        try:
            after = self.text.after_reply([message("user", ANSWER)])
        except ValueError:  # of a template for fresh prompts only
            return []
        return self._encode(after.partition(ANSWER)[0]).tolist()

    @cached_property
    def _closing(self) -> np.ndarray:
        """What ends a reply: up to the first marker after it."""
        length = 0 if self.end_id is None else self._end.index(self.end_id) + 1
        return np.asarray(self._end[:length], TOKEN_DTYPE)

    # --- tokens ---------------------------------------------------------------------------------

    def _sampled(self, response_ids: np.ndarray, after_reply: np.ndarray) -> int:
        """How many tokens after a reply the response has at its end already."""
        overlap = _overlap(response_ids, after_reply)
        if overlap == 0 and len(self._closing) > 1:  # it may leave out a blank before the end token
            before_end = len(self._closing) - 1
            overlap = _overlap(response_ids, after_reply[before_end:])
            return before_end + overlap if overlap else 0
        return overlap

    def _decoded(self, ids: np.ndarray) -> str:
        text = self.tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return cast(str, text)  # of one sequence

    def _encode(self, rendered: str) -> np.ndarray:
        ids = [token for piece in rendered.split(BREAK) for token in self._tokens(piece)]
        return np.asarray(ids, TOKEN_DTYPE)

    def _tokens(self, text: str) -> list[int]:
        # The template writes BOS and the like itself; the tokenizer must not add them once more.
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if not text[:1].isspace():
            return ids
        # Some tokenizers put a blank before every text, which would be one too many here.
        before = self.tokenizer.encode(REPLY, add_special_tokens=False)
        together = self.tokenizer.encode(REPLY + text, add_special_tokens=False)
        return together[len(before) :] if together[: len(before)] == before else ids


def _overlap(head: np.ndarray, tail: np.ndarray) -> int:
    """Length of the longest end of `head` that is also the beginning of `tail`."""
    head = head[max(len(head) - len(tail), 0) :]
    starts = np.flatnonzero(head == tail[0]) if len(tail) else ()
    ends = (head[start:] for start in starts)
    return next((len(end) for end in ends if np.array_equal(end, tail[: len(end)])), 0)
