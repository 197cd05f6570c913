"""The values that flow through the agent loop. Plain data: no torch, no Ray, no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

# Why a trajectory ended: "truncated" by the turn limit or by the time limit of a request,
# "overlong" when it no longer fits.
TerminationReason = Literal["success", "failure", "truncated", "overlong", "env_error"]
# Why a response ended: an end token or a stop string, or the limit of its tokens.
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Task:
    """One thing to solve: what `TextEnv.reset` needs to start exactly this episode again.

    `name` is the task type (metrics are split by it), `options` the environment's own coordinates
    (ScienceWorld: task_name, variation; ALFWorld: game), `seed` the episode's seed.
    """

    name: str
    options: Mapping[str, Any]
    seed: int = 0

    @property
    def key(self) -> str:
        """A stable, readable identity: equal for equal tasks, across processes and runs."""
        coordinates = ",".join(f"{k}={self.options[k]}" for k in sorted(self.options))
        return f"{self.name}[{coordinates}]#{self.seed}"


@dataclass(frozen=True)
class Episode:
    """A request to play `task` once. All episodes with the same `uid` form a group."""

    task: Task
    uid: str
    traj_uid: str


@dataclass(frozen=True)
class Observation:
    """What the agent sees; `admissible_actions` is None where they are not listed.

    `cleaned`: the environment sent something else, which no tokenizer or terminal should meet.
    """

    text: str
    admissible_actions: tuple[str, ...] | None = None
    cleaned: bool = False


@dataclass(frozen=True)
class StepResult:
    """The environment's answer to one action. `info` has at least `score` (0-100) and `success`."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class ParsedAction:
    """A model output turned into an environment command.

    `is_format_valid`: the output followed the `<think>/<action>` format.
    `is_admissible`: the command is one the environment accepts now; None when it cannot tell.
    """

    text: str
    is_format_valid: bool
    is_admissible: bool | None = None


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one response: `temperature` 0 is greedy, `seed` makes it repeatable.

    `stop`: texts that end it, outside of `<think>..</think>`; `in_reasoning`: the prompt has opened
    that already.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None
    in_reasoning: bool = False


@dataclass
class Turn:
    """One prompt-response-action-observation exchange, with the exact tokens that were sampled.

    `prompt_ids` is all that the engine saw for this turn (in the `trajectory` context it starts
    with every earlier prompt and response of its segment, see `conversation.segments`).
    """

    index: int
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    log_probs: np.ndarray
    response_text: str
    action: ParsedAction
    observation: str
    reward: float
    finish_reason: FinishReason = "stop"
    weight_version: int = 0
    dropped_turns: int = 0  # turns of history that did not fit the prompt budget
    opens_row: bool = (
        False  # its prompt does not go on from the one before, though none was dropped
    )


@dataclass
class Trajectory:
    """One finished episode.

    `info`: `lenient_success`; `cleaned`, how many observations were; `timed_out`, True where the
    engine did not answer in time (then `turns` are those before); `errors` of an environment that
    failed.
    """

    episode: Episode
    turns: list[Turn]
    reason: TerminationReason
    success: bool
    score: float
    episode_reward: float
    info: dict[str, Any] = field(default_factory=dict)
    timing_s: dict[str, float] = field(default_factory=dict)  # seconds of reset, env, generate

    @property
    def num_turns(self) -> int:
        return len(self.turns)
