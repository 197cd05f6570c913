"""ScienceWorld as a `gymnasium.Env` whose observations and actions are text."""

from __future__ import annotations

import string
import sys
from collections.abc import Mapping
from typing import IO, Any

import gymnasium

from agent_system.environments.env_package.java import sendable
from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.env_package.sciworld.rename import Renaming
from agent_system.environments.env_package.sciworld.simulator import Simulator
from agent_system.environments.env_package.sciworld.text import compact

SUCCESS_SCORE = 100
# The step limit that the published evaluations leave to the simulator's Python wrapper.
PUBLISHED_MOVE_LIMIT = 100
# It would wipe the score of a lost episode; the answer is the simulator's own to nonsense.
RESET_COMMAND = "reset task"
# The simulator's parser leaves them out, and what Java's `trim` takes for blanks.
ARTICLES = frozenset({"a", "an", "the"})
CONTROL_CHARACTERS = str.maketrans(dict.fromkeys(map(chr, range(32)), " "))
INVALID_ANSWER = "No known action matches that input."


def make_env(options: SciWorldOptions) -> SciWorldEnv:
    """The environment of a pool process, whose error output is the slot's log."""
    return SciWorldEnv(options, log=sys.stderr)


class SciWorldEnv(gymnasium.Env[str, str]):
    """One simulator, playing one episode after another.

    `reset` wants `options={"task": {"options": {"task_name": str, "variation": int}}}`. `step`
    takes a command, or the number of a choice when the observation is a menu. The reward is the
    change of the score in points. An episode has terminated when the task is over or the score is
    negative (a fatal mistake); it has no step limit of its own.

    `info`: score (0-100, negative: failed), success (over with the full score), failed, moves,
    lenient_success (over, by the published limit of 100 moves too, with a score above 0: waiting
    is enough, so compare with it but do not train on it), raw_observation (the simulator's words),
    task_text, and when the options ask for them admissible_actions and, at a reset, gold_path.
    """

    observation_space = gymnasium.spaces.Text(max_length=100_000, charset=string.printable)
    action_space = gymnasium.spaces.Text(max_length=1_000, charset=string.printable)

    def __init__(
        self, options: SciWorldOptions | None = None, *, log: IO[str] | None = None
    ) -> None:
        """Start the simulator, 1-2 s. `log` takes its error output."""
        self._options = options or SciWorldOptions()
        self._simulator = Simulator(self._options, log=log)
        self._looks_after_teleport = (
            self._options.teleport_look or self._options.observation == "compact"
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start the task; the observation is a first look around.

        Raises ValueError when `options["task"]` names no task of the simulator.
        """
        super().reset(seed=seed)
        coordinates = _coordinates(options)
        self._simulator.start(coordinates["task_name"], int(coordinates["variation"]))
        self._renaming = Renaming.draw(seed) if self._options.rename and seed else Renaming.none()
        self._task_text = self._renaming.apply(self._simulator.task_text)
        self._lenient_success: bool | None = None
        self._score = 0
        # a step rather than a free look: it refreshes the score, which `start` leaves stale
        observation, _, _, _, info = self._observe(self._simulator.step("look around"))
        if self._options.gold_path:
            info["gold_path"] = [self._renaming.apply(c) for c in self._simulator.gold_path()]
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one command."""
        command = self._renaming.invert(sendable(action))
        if means_reset(command):
            return self._observe(INVALID_ANSWER)
        answer = self._simulator.step(command)
        if self._looks_after_teleport and answer.startswith("You teleport to"):
            answer = self._simulator.look()
        return self._observe(answer)

    def close(self) -> None:
        """End the simulator."""
        self._simulator.close()

    def _observe(self, answer: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        score, completed = self._simulator.score, self._simulator.is_completed
        reward, self._score = float(score - self._score), score
        moves, failed = self._simulator.moves, score < 0
        if self._lenient_success is None and (completed or failed or moves > PUBLISHED_MOVE_LIMIT):
            self._lenient_success = score > 0
        info = {
            "score": score,
            "success": completed and score == SUCCESS_SCORE,
            "failed": failed,
            "moves": moves,
            "lenient_success": bool(self._lenient_success),
            "raw_observation": answer,
            "task_text": self._task_text,
        }
        if self._options.admissible_actions:
            info["admissible_actions"] = self._admissible_actions()
        text = self._renaming.apply(answer)
        if self._options.observation == "compact":
            text = compact(text)  # after renaming: a list sorted by the old names would tell them
        return text, reward, completed or failed, False, info

    def _admissible_actions(self) -> list[str]:
        actions = self._simulator.valid_actions()
        return sorted(self._renaming.apply(a) for a in actions if a != RESET_COMMAND)


def means_reset(command: str) -> bool:
    """Whether the simulator would read `command` as RESET_COMMAND."""
    words = command.lower().translate(CONTROL_CHARACTERS).split()
    return " ".join(word for word in words if word not in ARTICLES) == RESET_COMMAND


def _coordinates(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    try:
        coordinates = (options or {})["task"]["options"]
        return {key: coordinates[key] for key in ("task_name", "variation")}
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"reset got options={options!r}; pass the task as "
            '{"task": {"options": {"task_name": "boil", "variation": 0}}}'
        ) from error
