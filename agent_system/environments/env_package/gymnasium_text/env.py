"""A gymnasium environment as the rollout loop wants it: tasks by seed, honest success, a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from agent_system.environments.env_package.gymnasium_text.options import GymnasiumOptions
from agent_system.environments.registry import import_object

FULL_SCORE = 100.0


@dataclass(frozen=True)
class Outcome:
    """What a success definition may look at, after every step.

    `reward`: of this step. `episode_return`: of all steps so far, undiscounted.
    """

    reward: float
    episode_return: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


def success_from_info(outcome: Outcome) -> bool:
    """The environment's or the wrapper's own word. Raises ValueError when the end has none."""
    if outcome.terminated and "success" not in outcome.info:
        raise ValueError(
            "the environment does not say what success is; set env.options.success to a function "
            "of the outcome (module:function), or put 'success' into its info"
        )
    return bool(outcome.info.get("success", False))


class GymnasiumTextEnv:
    """Implements `TextEnv` around `gymnasium.make`.

    `reset` wants `options={"task": {"options": {"seed": int}}}`: that seed goes to the
    environment's `reset`, and decides the episode. The reward is the change of the score, which is
    `info["score"]` where the environment has one, else 100 at success and 0 before. `info`: score,
    success, failed, task_text, raw_reward (the environment's), and admissible_actions if it has
    them. An episode ends at success, or where the environment ends it or cuts it off.
    """

    def __init__(self, options: GymnasiumOptions) -> None:
        """Raises ValueError when observations or actions are not text."""
        self._options = options
        env = gymnasium.make(options.id, disable_env_checker=True, **options.kwargs)
        if options.wrapper:
            env = import_object(options.wrapper)(env, **options.wrapper_kwargs)
        for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
            if not isinstance(space, Text):
                raise ValueError(
                    f"the {what} of {options.id} are {space}, not text; set env.options.wrapper to "
                    "a wrapper that makes text of them (see gymnasium_text/wrappers.py)"
                )
        self._env: gymnasium.Env[str, str] = env
        self._is_success: Callable[[Outcome], bool] = (
            import_object(options.success) if options.success else success_from_info
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start the episode of the task's seed. Raises ValueError when it has none."""
        text, raw = self._env.reset(seed=_task_seed(options))
        self._return, self._score = 0.0, 0.0
        self._task_text = self._options.task_text or raw.get("task_text", "")
        if not self._task_text:
            raise ValueError(f"{self._options.id} has no words for its task; set options.task_text")
        self._accepted = raw.get("admissible_actions")
        return text, self._info(Outcome(0.0, 0.0, False, False, raw), success=False)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play a command; one that is not in the action space is refused without a move."""
        if not self._env.action_space.contains(action):
            raw = {} if self._accepted is None else {"admissible_actions": self._accepted}
            outcome = Outcome(0.0, self._return, False, False, {"score": self._score, **raw})
            return "There is no such command.", 0.0, False, False, self._info(outcome, False)
        text, reward, terminated, truncated, raw = self._env.step(action)
        self._return += float(reward)
        self._accepted = raw.get("admissible_actions")
        outcome = Outcome(float(reward), self._return, bool(terminated), bool(truncated), raw)
        success = bool(self._is_success(outcome))
        before, info = self._score, self._info(outcome, success)
        self._score = info["score"]
        over = outcome.terminated or success
        return text, self._score - before, over, outcome.truncated and not over, info

    def close(self) -> None:
        """End the environment."""
        self._env.close()

    def _info(self, outcome: Outcome, success: bool) -> dict[str, Any]:
        info = {
            "score": float(outcome.info.get("score", FULL_SCORE * success)),
            "success": success,
            "failed": outcome.terminated and not success,
            "task_text": self._task_text,
            "raw_reward": outcome.reward,
        }
        if outcome.info.get("admissible_actions") is not None:
            info["admissible_actions"] = list(outcome.info["admissible_actions"])
        return info


def _task_seed(options: Mapping[str, Any] | None) -> int:
    try:
        return int((options or {})["task"]["options"]["seed"])
    except (TypeError, KeyError) as error:
        raise ValueError(
            f'reset got options={options!r}; pass the task as {{"task": {{"options": '
            '{"seed": 0}}}'
        ) from error
