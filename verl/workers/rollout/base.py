"""What a rollout engine is.

The agent loop's own types are not imported: an engine takes and returns objects of the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Literal, Protocol

from verl.workers.weight_sync import WeightUpdate


class SamplingSettings(Protocol):
    """How to sample one response.

    `temperature` 0 is greedy; `top_p` 1 and `top_k` -1 keep the whole vocabulary; generation ends
    with a text that holds one of `stop` outside of its reasoning (`stopping.is_stopped`), where
    `in_reasoning` says that the prompt has opened that; `seed` makes the request repeatable.
    """

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def in_reasoning(self) -> bool: ...
    @property
    def seed(self) -> int | None: ...


@dataclass(frozen=True)
class Generation:
    """A response: sampled ids (with the end token or the tokens of the stop string), T of each.

    `log_probs` are of softmax(logits / temperature), temperature 1 when greedy, before top-p and
    top-k. `weight_version` is that of the weights that sampled it.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    weight_version: int


class EngineDiedError(RuntimeError):
    """The engine does not serve any more, and it is not this request's fault."""


class RolloutEngine(Protocol):
    """Samples for many conversations at once. All methods may be called from any thread.

    A cancelled `generate` frees what the request held.
    """

    def start(self) -> None:
        """Returns when requests are served."""
        ...

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        """Sample one response. A prompt that continues its trajectory's last one costs only its
        new tokens.

        Raises:
            ValueError: the prompt is empty or leaves no room for a response.
            EngineDiedError: the engine has to be started anew.
            RuntimeError: the engine is closed.
        """
        ...

    def release(self, trajectory_id: str) -> None:
        """The trajectory is over: what is cached for it may go."""
        ...

    def load_weights(self, update: WeightUpdate) -> None:
        """Returns when new requests are sampled from `update`; running ones finish before. An
        engine that sleeps wakes up.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs. The old weights stay.
            RuntimeError: what arrived does not have the update's checksum; or the engine died.
        """
        ...

    def sleep(self) -> None:
        """Give the memory of weights and caches back until `load_weights`, where the engine can.
        Nothing may be running."""
        ...

    def stats(self) -> dict[str, float]:
        """Counters since the start, at least `generated_tokens`, `prefilled_tokens` and
        `cache_hit_tokens` (prompt tokens that did not have to be prefilled)."""
        ...

    def close(self) -> None:
        """Stop serving; open requests fail."""
        ...


class ScoringEngine(Protocol):
    """What a `RolloutEngine` may have besides, so that a run can compare it with the trainer.

    Called while nothing runs. Later requests are answered as if it had not been called.
    """

    def score(self, rows: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """Of each row, the log-probs of its tokens after the first, given those before them: of
        softmax(logits), whatever temperature and filters requests have. None: not with this
        model."""
        ...


class ComparingEngine(Protocol):
    """One that can also tell where its weights went wrong."""

    def differing_weights(self, update: WeightUpdate) -> list[str]:
        """Which tensors of `update`, the last one that was loaded, it does not hold bit for bit."""
        ...


def response_tokens(prompt: Sized, sampling: SamplingSettings, max_model_len: int) -> int:
    """The most tokens that a response may have. Raises ValueError when there is no prompt or no
    room for a response."""
    room = max_model_len - len(prompt)
    if len(prompt) == 0 or room < 1 or sampling.max_tokens < 1:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and max_tokens={sampling.max_tokens} leave nothing "
            f"to generate within max_model_len={max_model_len}"
        )
    return min(sampling.max_tokens, room)
