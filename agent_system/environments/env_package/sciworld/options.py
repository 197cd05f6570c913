"""The settings of ScienceWorld, `env.options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PRESETS = (
    "easy",
    "teleportAction",
    "openDoors",
    "openContainers",
    "selfWateringFlowerPots",
    "noElectricalAction",
)
MIN_HEAP_MB = 64


@dataclass(frozen=True)
class SciWorldOptions:
    """What the game looks like; one simulator per process.

    `simplification`: presets of the simulator, comma-separated; "" is the full game, "easy" all but
    openContainers (with electrical actions in the tasks that need them).
    `jvm_heap_mb`: heap limit of a Java process in MiB; 256 is enough for all 30 tasks.
    `simulators_per_jvm`: so many environment processes share a Java process, in which one plays at
    a time: less memory, fewer steps a second (see `shared_java.py`).
    `repeatable`: equal commands get equal answers at every start; a step takes 2 ms more. Without
    it the order of lists, what a thermometer reads and where bees fly are others each time.
    Simulators that share a Java process share its random numbers too: there bees stay so.
    `observation`: `full` is the simulator's text. `compact` lists rooms as "room : item , item",
    sorted, without doors, articles and the contents of containers (see `text.py`); a teleport
    then answers with the new room.
    `teleport_look`: a teleport answers with the new room, in `full` too.
    `admissible_actions`: list the commands that the simulator accepts now (25-40 ms a step more).
    `gold_path`: at a reset, add a winning list of commands to `info["gold_path"]`. The simulator
    searches for it, 0.3 s and for a few variations over 20 s.
    `rename`: in episodes with a seed other than 0, which are those drawn for training, swap the
    names of rooms, box colours and animals (see `rename.py`); for the find-* tasks.
    """

    simplification: str = "easy"
    jvm_heap_mb: int = 256
    simulators_per_jvm: int = 1
    repeatable: bool = True
    observation: Literal["full", "compact"] = "full"
    teleport_look: bool = False
    admissible_actions: bool = False
    gold_path: bool = False
    rename: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError on an unknown preset or a heap too small to start."""
        for preset in self.presets:
            if preset not in PRESETS:
                raise ValueError(
                    f"unknown simplification '{preset}'; available: {', '.join(PRESETS)}"
                )
        if self.jvm_heap_mb < MIN_HEAP_MB:
            raise ValueError(f"jvm_heap_mb={self.jvm_heap_mb}; the simulator needs {MIN_HEAP_MB}")
        if self.simulators_per_jvm < 1:
            raise ValueError(
                f"simulators_per_jvm={self.simulators_per_jvm}; it has to be at least 1"
            )

    @property
    def presets(self) -> frozenset[str]:
        """The simplifications one by one."""
        return frozenset(filter(None, self.simplification.split(",")))
