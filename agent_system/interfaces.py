"""The four roles of the agent loop: an environment, a policy, a way of writing prompts, and the
tokens that these are for the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agent_system.types import (
    FinishReason,
    Observation,
    ParsedAction,
    SamplingParams,
    StepResult,
    Task,
    Turn,
)


@runtime_checkable
class TextEnv(Protocol):
    """A text environment that lives in its own process and plays one episode after another.

    It is a `gymnasium.Env` whose observations are text; the pool talks to it through these calls.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict]:
        """Start the episode described by `options["task"]`. Returns (observation, info)."""
        ...

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict]:
        """Returns (observation, reward, terminated, truncated, info)."""
        ...

    def close(self) -> None: ...


class AsyncEnv(Protocol):
    """A slot of the pool as the loop sees it: one environment process behind awaitable calls."""

    async def reset(self, task: Task) -> tuple[Observation, dict[str, Any]]: ...

    async def step(self, action: str) -> StepResult: ...


class Generation(Protocol):
    """What an engine returns: the sampled ids (with the stop or end token) and their log-probs.

    `token_ids`: (T,) int. `log_probs`: (T,) float, of softmax(logits / temperature), before top-p
    and top-k. `weight_version`: the policy version that produced it.
    """

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def log_probs(self) -> Sequence[float]: ...
    @property
    def finish_reason(self) -> FinishReason: ...
    @property
    def weight_version(self) -> int: ...


class Policy(Protocol):
    """All that the loop knows of an engine."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, *, trajectory_id: str
    ) -> Generation:
        """Sample one response. Equal `trajectory_id`s may share a cached prefix.

        Raises:
            TimeoutError: no answer in time. The episode ends as "truncated" with the turns it has.
                Any other error ends the whole rollout.
        """
        ...

    def release(self, trajectory_id: str) -> None:
        """The trajectory is over: its cached prefix may go."""
        ...


class PromptBuilder(Protocol):
    """How one environment is put in words: messages in, a command out."""

    def system(self, task_text: str) -> str | None:
        """The system message, or None for none."""
        ...

    def first(self, task_text: str, observation: Observation) -> str:
        """The first user message: the task and the first observation."""
        ...

    def next(self, observation: Observation) -> str:
        """The user message that answers an action, in the `trajectory` context."""
        ...

    def turn(
        self, task_text: str, history: Sequence[Turn], observation: Observation, step: int
    ) -> str:
        """The whole user message of turn `step`, in the `turn` context."""
        ...

    def parse(self, response: str, observation: Observation) -> ParsedAction:
        """Turn a model output into a command. Never raises."""
        ...


class Chat(Protocol):
    """Messages as the exact tokens that a policy sees, and its tokens as text. T tokens.

    What a message says never becomes one of the markers between messages.
    """

    @property
    def opens_reasoning(self) -> bool:
        """Whether every response begins within `<think>`."""
        ...

    def opening(self, system: str | None, user: str) -> np.ndarray:
        """(T,) up to the first response. Raises ValueError when the messages are refused."""
        ...

    def continuation(self, response_ids: np.ndarray, user: str) -> np.ndarray:
        """(T,) from the end of a sampled response to where the next one begins. Raises ValueError
        when the messages are refused."""
        ...

    def without_reasoning(self, prompt_ids: np.ndarray, response_ids: np.ndarray) -> np.ndarray:
        """(T,) prompt and response as later prompts show them where reasoning is dropped."""
        ...

    def decode(self, ids: np.ndarray) -> str:
        """The whole text of a response but for the end token."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        ...

    def has_markers(self, text: str) -> bool:
        """Whether it spells a marker that stands between messages."""
        ...
