"""What one answer of an environment has to look like, as sentences about what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agent_system.environments.projection import clean_command
from agent_system.types import Observation, StepResult

LOWEST_SCORE, FULL_SCORE = -100.0, 100.0  # a negative score is a lost episode's
MAX_NAMED = 3


def reset_problems(observation: Observation, info: Mapping[str, Any]) -> Iterator[str]:
    """Of the answer to a reset."""
    yield from _observation_problems(observation)
    yield from _info_problems(info)
    if info.get("success"):
        yield "info['success'] is True before the first step"


def step_problems(result: StepResult, score_before: float) -> Iterator[str]:
    """Of the answer to a step. `score_before`: the score of the answer before it."""
    yield from _observation_problems(result.observation)
    yield from _info_problems(result.info)
    for name in ("terminated", "truncated"):
        if not isinstance(getattr(result, name), bool):
            yield f"{name} is {getattr(result, name)!r}; it has to be True or False (a bool)"
    if not _is_number(result.reward):
        yield f"the reward is {result.reward!r}; it has to be a finite number"
    elif _is_number(result.info.get("score")):
        change = result.info["score"] - score_before
        if not math.isclose(result.reward, change, abs_tol=1e-6):
            yield (
                f"the reward is {result.reward}, but the score changed by {change}; the reward is "
                "the change of info['score']"
            )
    if result.info.get("success") and not result.terminated:
        yield "info['success'] is True, but terminated is not; a solved task has ended"


def words(text: str) -> list[str]:
    """The words of a text, sorted: equal for texts that list the same things in another order."""
    return sorted(re.findall(r"\w+", text))


def _observation_problems(observation: Observation) -> Iterator[str]:
    if not isinstance(observation.text, str):
        yield f"the observation is a {type(observation.text).__name__}; it has to be a text (str)"
    actions = observation.admissible_actions
    if actions is None:
        return
    if not all(isinstance(action, str) for action in actions):
        yield "info['admissible_actions'] has to be a list of texts"
        return
    if len(set(actions)) < len(actions):
        yield "info['admissible_actions'] names an action twice"
    unwritable = [action for action in actions if clean_command(action) != action]
    if unwritable:
        yield (
            f"no model output is read as the admissible actions {unwritable[:MAX_NAMED]!a}; an "
            "action is one line of single-spaced, printable text without quotes around it"
        )


def _info_problems(info: Mapping[str, Any]) -> Iterator[str]:
    missing = [key for key in ("score", "success", "task_text") if key not in info]
    if missing:
        yield f"info lacks {', '.join(missing)}"
    if "score" in info:
        score = info["score"]
        if not _is_number(score) or not LOWEST_SCORE <= score <= FULL_SCORE:
            yield f"info['score'] is {score!r}; it has to be a number of points, 0 to 100"
    if "success" in info and not isinstance(info["success"], bool):
        yield f"info['success'] is {info['success']!r}; it has to be True or False (a bool)"
    if "task_text" in info and not (isinstance(info["task_text"], str) and info["task_text"]):
        yield f"info['task_text'] is {info['task_text']!r}; it has to be the task in words"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
