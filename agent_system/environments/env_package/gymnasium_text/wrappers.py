"""Gymnasium environments in words. A wrapper says what is seen, what can be done, what is won.

Where two seeds may make one game, its static method `content_key(options, seed)` says which: equal
keys are one game, and the lists dev and test leave out what is in train.
"""

from __future__ import annotations

import string
from abc import abstractmethod
from functools import cache
from typing import Any, cast

import gymnasium
from gymnasium.envs.toy_text.frozen_lake import MAPS, FrozenLakeEnv, generate_random_map
from gymnasium.spaces import Text

from agent_system.environments.env_package.gymnasium_text.options import GymnasiumOptions

DRAWN_SIZE = 8  # of a map that gymnasium draws
ANY_TEXT = {"max_length": 100_000, "charset": string.printable}


@cache
def random_map(size: int, seed: int) -> tuple[str, ...]:
    """A FrozenLake map that can be crossed: holes on a fifth of its fields."""
    return tuple(generate_random_map(size=size, seed=seed))


class DiscreteTextWrapper(gymnasium.Wrapper):
    """Base for environments with numbered actions: give the words, keep the rest.

    `commands`: the words of action 0, 1, ..; another command is answered and changes nothing.
    `task_text`: the task in words.
    """

    commands: tuple[str, ...]
    task_text: str

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = Text(**ANY_TEXT)
        self.action_space = AnyText()

    @abstractmethod
    def describe(self, observation: Any) -> str:
        """The observation in words."""

    @abstractmethod
    def is_success(self, reward: float, terminated: bool) -> bool:
        """Whether the step just taken solved the task."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        observation, _ = self.env.reset(seed=seed, options=options)
        self._seen = self.describe(observation)
        return self._seen, self._info(success=False)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action not in self.commands:
            text = f"The commands are: {', '.join(self.commands)}.\n{self._seen}"
            return text, 0.0, False, False, self._info(success=False)
        number = self.commands.index(action)
        observation, reward, terminated, truncated, _ = self.env.step(number)
        self._seen = self.describe(observation)
        success = self.is_success(float(reward), bool(terminated))
        return self._seen, float(reward), terminated, truncated, self._info(success)

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            "success": success,
            "task_text": self.task_text,
            "admissible_actions": self.commands,
        }


class AnyText(Text):
    """Actions of which the wrapper itself judges what they mean."""

    def __init__(self) -> None:
        super().__init__(**ANY_TEXT)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)


class FrozenLakeText(DiscreteTextWrapper):
    """FrozenLake as a drawn map. Success: the player stands on the goal."""

    commands = ("left", "down", "right", "up")  # FrozenLake's actions 0 to 3
    task_text = (
        "Cross the frozen lake from P to the goal G. Stay on the ice, marked by a dot: who steps "
        "into a hole O is lost."
    )
    signs = str.maketrans({"S": ".", "F": ".", "H": "O"})

    def __init__(self, env: gymnasium.Env, *, random_maps: bool = False) -> None:
        """`random_maps`: every seed has a map of its own, of the size of `env`'s map.

        Without it all seeds have the same map, and differ only in how the player slips.
        """
        super().__init__(env)
        self._random_maps = random_maps

    @staticmethod
    def content_key(options: GymnasiumOptions, seed: int) -> str | None:
        """The map: there are few of 4x4 fields, and most seeds share theirs with another.

        None on one slippery map for all, where a seed is the player's luck.
        """
        kwargs = gymnasium.spec(options.id).kwargs | options.kwargs
        rows = kwargs.get("desc") or MAPS.get(kwargs.get("map_name") or "", [])
        if options.wrapper_kwargs.get("random_maps", False):
            rows = random_map(len(rows) or DRAWN_SIZE, seed)
        elif not rows or kwargs.get("is_slippery", True):  # without rows gymnasium draws some
            return None
        return "\n".join(rows)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        if self._random_maps:
            assert seed is not None, "a task has one"
            rows = list(random_map(len(self._map()), seed))
            spec = self.env.spec
            assert spec is not None, "made by gymnasium.make"
            kwargs = {**spec.kwargs, "desc": rows, "map_name": None}
            self.env.close()
            self.env = gymnasium.make(spec.id, disable_env_checker=True, **kwargs)
        return super().reset(seed=seed, options=options)

    def describe(self, observation: int) -> str:
        rows = [row.translate(self.signs) for row in self._map()]
        row, column = divmod(int(observation), len(rows[0]))
        if rows[row][column] == "O":
            return "You fell into a hole."
        if rows[row][column] == "G":
            return "You reached the goal."
        rows[row] = rows[row][:column] + "P" + rows[row][column + 1 :]
        return "\n".join(" ".join(row) for row in rows)

    def is_success(self, reward: float, terminated: bool) -> bool:
        row, column = divmod(int(self._lake.s), len(self._map()[0]))
        return terminated and self._map()[row][column] == "G"

    @property
    def _lake(self) -> FrozenLakeEnv:
        return cast(FrozenLakeEnv, self.env.unwrapped)

    def _map(self) -> list[str]:
        return [b"".join(row).decode() for row in self._lake.desc]


class BlackjackText(DiscreteTextWrapper):
    """Blackjack. Success: the hand is won, a positive reward; a draw is none."""

    commands = ("stick", "hit")  # Blackjack's actions 0 and 1
    task_text = (
        "Win a hand of blackjack: come closer to 21 than the dealer, without going over. hit draws "
        "a card, stick ends your turn."
    )

    def describe(self, observation: tuple[int, int, int]) -> str:
        total, dealer, usable_ace = (int(number) for number in observation)
        ace = ", with an ace that counts 11" if usable_ace else ""
        return (
            f"Your cards make {total}{ace}. The dealer shows {'an ace' if dealer == 1 else dealer}."
        )

    def is_success(self, reward: float, terminated: bool) -> bool:
        return terminated and reward > 0
