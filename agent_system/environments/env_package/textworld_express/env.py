"""TextWorldExpress as a `gymnasium.Env` whose observations and actions are text."""

from __future__ import annotations

import string
import sys
from collections.abc import Mapping
from typing import IO, Any

import gymnasium

from agent_system.environments.env_package.java import sendable
from agent_system.environments.env_package.textworld_express.options import (
    TextWorldExpressOptions,
)
from agent_system.environments.env_package.textworld_express.simulator import (
    GameAnswer,
    Simulator,
)

MAX_COMMAND_CHARS = 1_000


def make_env(options: TextWorldExpressOptions) -> TextWorldExpressEnv:
    """The environment of a pool process, whose error output is the slot's log."""
    return TextWorldExpressEnv(options, log=sys.stderr)


class TextWorldExpressEnv(gymnasium.Env[str, str]):
    """One simulator, playing one episode after another.

    `reset` wants `options={"task": {"options": {"game": str, "fold": str, "seed": int}}}`; these
    decide the game, and the episode's own `seed` changes nothing. The reward is the change of the
    score in points. An episode has terminated when the game says that it is won or lost; it has no
    step limit of its own.

    `info`: score (0-100; -100: lost), success, failed, task_text, at a reset gold_path when the
    options ask for it, and admissible_actions when they do.
    """

    observation_space = gymnasium.spaces.Text(max_length=100_000, charset=string.printable)
    action_space = gymnasium.spaces.Text(max_length=MAX_COMMAND_CHARS, charset=string.printable)

    def __init__(
        self, options: TextWorldExpressOptions | None = None, *, log: IO[str] | None = None
    ) -> None:
        """Start the simulator, 0.4 s. `log` takes its error output."""
        self._options = options or TextWorldExpressOptions()
        self._simulator = Simulator(heap_mb=self._options.jvm_heap_mb, log=log)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start the game. Raises ValueError when `options["task"]` names none."""
        super().reset(seed=seed)
        game, fold, game_seed = _coordinates(options)
        answer = self._simulator.start(
            game,
            self._options.params_of(game),
            fold,
            game_seed,
            gold_path=self._options.gold_path,
        )
        self._task_text = self._simulator.task_text
        self._score = 0
        info = self._info(answer)
        if self._options.gold_path:
            info["gold_path"] = self._simulator.gold_path()
        return answer.text, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one command."""
        # what is too long for a command is none
        command = sendable(action) if len(action) <= MAX_COMMAND_CHARS else ""
        answer = self._simulator.step(command)
        reward, self._score = float(answer.score - self._score), answer.score
        return answer.text, reward, answer.success or answer.failed, False, self._info(answer)

    def close(self) -> None:
        """End the simulator."""
        self._simulator.close()

    def _info(self, answer: GameAnswer) -> dict[str, Any]:
        info = {
            "score": answer.score,
            "success": answer.success,
            "failed": answer.failed,
            "task_text": self._task_text,
        }
        if self._options.admissible_actions:
            info["admissible_actions"] = answer.valid_actions
        return info


def _coordinates(options: Mapping[str, Any] | None) -> tuple[str, str, int]:
    try:
        coordinates = (options or {})["task"]["options"]
        return coordinates["game"], coordinates["fold"], int(coordinates["seed"])
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"reset got options={options!r}; pass the task as "
            '{"task": {"options": {"game": "coin", "fold": "train", "seed": 0}}}'
        ) from error
