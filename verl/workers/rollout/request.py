"""A request to an engine, and when its response ends."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from verl.workers.rollout.base import Generation, SamplingSettings
from verl.workers.rollout.row_cache import CacheRow


@dataclass(eq=False)
class Request:
    """One response in the making. `uniforms` are its random numbers, one a token; `row`, where
    its keys and values are, is set when it is admitted."""

    prompt_ids: np.ndarray
    sampling: SamplingSettings
    trajectory_id: str
    max_tokens: int
    uniforms: list[float]
    future: Future[Generation] = field(default_factory=Future)
    row: CacheRow = field(init=False)
    weight_version: int = 0
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the response so far."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def new_tokens(self) -> int:
        """Prompt tokens that the row does not hold yet."""
        return len(self.prompt_ids) - len(self.row.tokens)

    @property
    def known_tokens(self) -> np.ndarray:
        """What the row holds at the end: the last token was sampled but never fed."""
        return np.concatenate([self.prompt_ids, np.array(self.token_ids[:-1], dtype=np.int64)])

    def finish(self, reason: Literal["stop", "length"]) -> None:
        """Hand the response to whoever waits for it, if anyone still does."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(
                Generation(
                    tuple(self.token_ids), tuple(self.log_probs), reason, self.weight_version
                )
            )


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    shorter = min(len(first), len(second))
    differs = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differs[0]) if differs.size else shorter
