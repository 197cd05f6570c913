"""The synchronous, vectorised view of environments that users of verl-agent know.

Training does not use it (see `agent_system.multi_turn_rollout`, where no episode waits for another
one); it serves notebooks, scripted baselines and code written for that interface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from agent_system.config import EnvConfig
from agent_system.types import Task


class VectorEnv(Protocol):
    """B environments stepped together. A finished one repeats its last answer with reward 0."""

    def reset(self, tasks: Sequence[Task] | None) -> tuple[list[str], list[dict[str, Any]]]: ...

    def step(
        self, commands: Sequence[str]
    ) -> tuple[list[str], list[float], list[bool], list[dict[str, Any]]]: ...

    def close(self) -> None: ...


class EnvironmentManagerBase:
    """Model outputs in, prompts out, for a batch of B environments."""

    def __init__(
        self,
        envs: VectorEnv,
        projection_f: Callable[[list[str]], tuple[list[str], list[int]]],
        config: EnvConfig,
    ) -> None:
        """`projection_f`: model outputs -> commands and whether each followed the format (1/0)."""
        self.envs = envs
        self.projection_f = projection_f
        self.config = config

    def reset(
        self, kwargs: Sequence[Task] | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Start B episodes, of the tasks given or of the next ones in the list.

        Returns the observations (see `step`) and the environments' infos.
        """
        texts, infos = self.envs.reset(kwargs)
        self.receive(infos)
        return self._observations(texts), infos

    def step(
        self, text_actions: list[str]
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Play B model outputs.

        Returns observations {"text": prompts, "image": None, "anchor": bare observations}, each a
        list of B, rewards (B,) float32, dones (B,) bool, and infos with `is_action_valid` added.
        """
        commands, valids = self.projection_f(text_actions)
        texts, rewards, dones, infos = self.envs.step(commands)
        self.remember(commands, texts)
        self.receive(infos)
        for info, valid in zip(infos, valids, strict=True):
            info["is_action_valid"] = np.asarray(valid)
        return (
            self._observations(texts),
            np.asarray(rewards, dtype=np.float32),
            np.asarray(dones, dtype=bool),
            infos,
        )

    def remember(self, commands: list[str], texts: list[str]) -> None:
        """Called with each step's commands and answers, before `build_text_obs`."""

    def receive(self, infos: list[dict[str, Any]]) -> None:
        """Called with the infos of each reset and step, before `build_text_obs`."""

    def build_text_obs(self, texts: list[str]) -> list[str]:
        """The prompts for bare observations; here the observations themselves."""
        return list(texts)

    def success_evaluator(
        self, *, total_infos: Sequence[Sequence[dict[str, Any]]], **_: Any
    ) -> dict[str, np.ndarray]:
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
