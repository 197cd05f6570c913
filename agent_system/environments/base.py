"""The base class of environment managers, by the name that code written for verl-agent extends.

The rollout loop does without managers (`agent_system.multi_turn_rollout`: no episode waits there
for another one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Infos = list[dict[str, Any]]


class VectorEnv(Protocol):
    """B environments stepped together. A finished one repeats its last answer with reward 0."""

    def reset(self, tasks: Any) -> tuple[list[str], Infos]: ...

    def step(self, commands: list[str]) -> tuple[list[str], list[float], list[bool], Infos]: ...

    def close(self) -> None: ...


class EnvironmentManagerBase:
    """Model outputs in, prompts out, for a batch of B environments."""

    def __init__(
        self,
        envs: VectorEnv,
        projection_f: Callable[[list[str]], tuple[list[str], list[int]]],
        config: Any,
    ) -> None:
        """`projection_f`: model outputs -> commands and whether each followed the format (1/0).

        `config` is for what extends this class.
        """
        self.envs = envs
        self.projection_f = projection_f
        self.config = config

    def reset(self, kwargs: Any = None) -> tuple[dict[str, Any], Infos]:
        """Start B episodes, of the tasks `kwargs`. Returns observations (see `step`) and infos."""
        texts, infos = self.envs.reset(kwargs)
        return self._observations(texts), infos

    def step(self, text_actions: list[str]) -> tuple[dict[str, Any], np.ndarray, np.ndarray, Infos]:
        """Play B model outputs.

        Returns observations {"text": prompts, "image": None, "anchor": bare observations}, each a
        list of B, rewards (B,) float32, dones (B,) bool, and infos with `is_action_valid` added.
        """
        commands, valids = self.projection_f(text_actions)
        texts, rewards, dones, infos = self.envs.step(commands)
        for info, valid in zip(infos, valids, strict=True):
            info["is_action_valid"] = np.asarray(valid)
        rewards, dones = np.asarray(rewards, np.float32), np.asarray(dones, bool)
        return self._observations(texts), rewards, dones, infos

    def build_text_obs(self, texts: list[str]) -> list[str]:
        """The prompts for bare observations; here the observations themselves."""
        return list(texts)

    def success_evaluator(self, *, total_infos: Sequence[Infos], **_: Any) -> dict[str, np.ndarray]:
        """Success of each of B episodes from its infos, one list an episode: (B,) float32.

        A finished environment repeats its last info, so the last one decides.
        """
        won = [float(infos[-1]["success"]) for infos in total_infos]
        return {"success_rate": np.asarray(won, dtype=np.float32)}

    def close(self) -> None:
        """End the environments."""
        self.envs.close()

    def _observations(self, texts: list[str]) -> dict[str, Any]:
        return {"text": self.build_text_obs(texts), "image": None, "anchor": list(texts)}
