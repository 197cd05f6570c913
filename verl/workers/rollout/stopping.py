"""Where a response ends by its text. One rule for every engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import cast

from transformers import PreTrainedTokenizerBase

from verl.workers.rollout.base import SamplingSettings

# What a model says to itself: up to the end of the reasoning, or of what there is of it.
_WITHIN = re.compile(r"(?<=<think>).*?(?=</think>|\Z)", re.IGNORECASE | re.DOTALL)
_BEFORE_END = re.compile(r"\A.*?(?=</think>|\Z)", re.IGNORECASE | re.DOTALL)


def is_stopped(text: str, sampling: SamplingSettings) -> bool:
    """Whether a stop string stands outside of the reasoning.

    A model that quotes one while it thinks goes on. Without `<think>` there is no reasoning, unless
    the prompt has opened it.

    >>> from agent_system.types import SamplingParams
    >>> is_stopped("<think>no </action></think> so", SamplingParams(stop=("</action>",)))
    False
    """
    said = _BEFORE_END.sub("", text) if sampling.in_reasoning else text
    said = _WITHIN.sub("", said)
    return any(string in said for string in sampling.stop)


class StopStrings:
    """The same for tokens, decoding only when the last one may end a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._last_pieces = cache(self._find_last_pieces)

    def __call__(self, token_ids: Sequence[int], sampling: SamplingSettings) -> bool:
        if token_ids[-1] not in self._last_pieces(sampling.stop):
            return False
        return is_stopped(cast(str, self._tokenizer.decode(list(token_ids))), sampling)

    def _find_last_pieces(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Tokens with the last character of a stop string, and pieces of a character (U+FFFD)."""
        last = {string[-1] for string in stop} | {"\ufffd"}
        texts = self._tokenizer.batch_decode([[token] for token in range(len(self._tokenizer))])
        return frozenset(token for token, text in enumerate(texts) if not last.isdisjoint(text))
