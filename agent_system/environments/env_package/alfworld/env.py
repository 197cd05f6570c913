"""ALFWorld as a `gymnasium.Env` whose observations and actions are text."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import gymnasium
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld import EnvInfos
from textworld.envs.pddl import PddlEnv

from agent_system.environments.env_package.alfworld.data import find_data_dir
from agent_system.environments.env_package.alfworld.game_files import read_game
from agent_system.environments.env_package.alfworld.options import AlfWorldOptions
from agent_system.environments.env_package.alfworld.speedups import speedups

SUCCESS_SCORE = 100
META_COMMANDS = frozenset({"help"})  # about the game, not in it
_BANNER = re.compile(r"^-= .* =-\s*")
_TASK = re.compile(r"\s*Your task is to: (?P<task>.*)", re.DOTALL)


def make_env(options: AlfWorldOptions) -> AlfWorldEnv:
    """The environment of a pool process."""
    return AlfWorldEnv(options)


def open_simulator() -> AlfredDemangler:
    """TextWorld's environment for ALFWorld's games, with readable names in a fixed order."""
    infos = EnvInfos(won=True, admissible_commands=True)
    return AlfredDemangler(PddlEnv(infos), shuffle=False)


class AlfWorldEnv(gymnasium.Env[str, str]):
    """One simulator, playing one game after another. Nothing in it is random.

    `reset` wants `options={"task": {"options": {"game": str}}}`, the path of a game file relative
    to the data folder. The reward is the change of the score, 0 to 100 at once when the game is
    won, which ends the episode; it has no step limit of its own.

    `info`: score (0 or 100), success, lenient_success (the same: nothing but the goal counts),
    moves, raw_observation (the simulator's words), task_text, and admissible_actions, sorted,
    without "help".
    """

    observation_space = gymnasium.spaces.Text(max_length=100_000, charset=string.printable)
    action_space = gymnasium.spaces.Text(max_length=1_000, charset=string.printable)

    def __init__(self, options: AlfWorldOptions | None = None) -> None:
        """Load the simulator's libraries. The speed-ups last until `close`."""
        options = options or AlfWorldOptions()
        self._data_dir = find_data_dir(options.data_dir)
        self._patches = ExitStack()
        if options.speedups:
            self._patches.enter_context(speedups())
        self._simulator = open_simulator()
        self._loaded: str | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start the game; the observation is what there is in the room.

        Raises ValueError when `options["task"]` names no game or the game cannot be read.
        """
        super().reset(seed=seed)
        game = _game_of(options)
        if game != self._loaded:
            self._loaded = None  # a load that fails half-way leaves nothing to go on with
            self._simulator.load(read_game(self._data_dir / game))
            self._loaded = game
        state = self._simulator.reset()
        self._moves, self._score = 0, 0
        observation, self._task_text = split_intro(state.feedback)
        _, _, _, info = self._observe(state)
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one command; letter case does not matter."""
        state, _, _ = self._simulator.step(" ".join(action.lower().split()))
        self._moves += 1
        reward, won, observation, info = self._observe(state)
        return observation, reward, won, False, info

    def close(self) -> None:
        """Undo the speed-ups."""
        self._patches.close()

    def _observe(self, state: Any) -> tuple[float, bool, str, dict[str, Any]]:
        won = bool(state["won"])
        score = SUCCESS_SCORE if won else 0
        reward, self._score = float(score - self._score), score
        info = {
            "score": score,
            "success": won,
            "lenient_success": won,
            "moves": self._moves,
            "raw_observation": state.feedback,
            "task_text": self._task_text,
            "admissible_actions": [
                command for command in state["admissible_commands"] if command not in META_COMMANDS
            ],
        }
        return reward, won, state.feedback, info


def split_intro(feedback: str) -> tuple[str, str]:
    """A game's first text as (what there is in the room, the task in one sentence)."""
    text = _BANNER.sub("", feedback)
    task = _TASK.search(text)
    if task is None:
        return text.strip(), ""
    return text[: task.start()].strip(), task["task"].strip()


def _game_of(options: Mapping[str, Any] | None) -> str:
    try:
        return (options or {})["task"]["options"]["game"]
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"reset got options={options!r}; pass the task as "
            '{"task": {"options": {"game": "json_2.1.1/train/<task>/<trial>/game.tw-pddl"}}}'
        ) from error
