"""ScienceWorld's task lists by name, from a stored table of its 30 tasks' variations.

| name | tasks | variations |
|---|---|---|
| L0_train, L1_train | all but use-thermometer (29) | train |
| L0_test | the same | dev |
| L1_test | the same | test |
| L2_train | those, without the 10 held-out ones (19) | train |
| L2_test | the 10 held-out ones | test |
| held_out_types_train, held_out_types_test | other names of L2_train and L2_test | |
| all_train, all_dev, all_test | all 30 | train, dev, test |

L0, L1 and L2 are the published lists. The tests of L0 and L1 are unseen variations of task types
that are in training. L2 is a split by type, but the published runs trained on L0_train, and so on
the types of L2_test too. Unseen types are tested by training on L2_train and validating on L2_test,
not otherwise; the names held_out_types_* are for runs that mean this.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

from agent_system.config import TaskSetConfig
from agent_system.environments.tasks import load_task_file, select_tasks
from agent_system.types import Task

VARIATIONS_FILE = Path(__file__).with_name("variations.json")

HELD_OUT_TYPES = frozenset(
    {
        "change-the-state-of-matter-of",
        "chemistry-mix-paint-tertiary-color",
        "find-plant",
        "grow-plant",
        "identify-life-stages-2",
        "inclined-plane-friction-unnamed-surfaces",
        "lifespan-longest-lived-then-shortest-lived",
        "measure-melting-point-unknown-substance",
        "mendelian-genetics-unknown-plant",
        "test-conductivity-of-unknown-substances",
    }
)
UNPUBLISHED_TYPE = "use-thermometer"  # in the simulator, but in none of the published lists

Types = Literal["all", "published", "seen", "held_out"]

_LISTS: dict[str, tuple[Types, str]] = {
    "L0_train": ("published", "train"),
    "L0_test": ("published", "dev"),
    "L1_train": ("published", "train"),
    "L1_test": ("published", "test"),
    "L2_train": ("seen", "train"),
    "L2_test": ("held_out", "test"),
    "held_out_types_train": ("seen", "train"),
    "held_out_types_test": ("held_out", "test"),
    "all_train": ("all", "train"),
    "all_dev": ("all", "dev"),
    "all_test": ("all", "test"),
}


def sciworld_tasks(config: TaskSetConfig) -> list[Task]:
    """The list named `config.name`, or the one in that file (*.json), filtered and cut.

    Raises ValueError on an unknown name or task type, and when nothing is left.
    """
    if config.name.endswith(".json"):
        return select_tasks(load_task_file(config.name, "sciworld/SciWorldEnv"), config)
    if config.name not in _LISTS:
        raise ValueError(
            f"unknown task list '{config.name}'; available: {', '.join(_LISTS)}, or a *.json file"
        )
    types, split = _LISTS[config.name]
    tasks = [
        Task(name, {"task_name": name, "variation": variation})
        for name in _type_names(types)
        for variation in variations(name, split)
    ]
    return select_tasks(tasks, config)


def variations(task_name: str, split: str) -> list[int]:
    """The ids of a task's variations in `split`: train, dev or test."""
    ranges = _table()[task_name][split]
    return [number for first, last in ranges for number in range(first, last + 1)]


def _type_names(types: Types) -> list[str]:
    if types == "all":
        return sorted(_table())
    published = [name for name in sorted(_table()) if name != UNPUBLISHED_TYPE]
    if types == "published":
        return published
    return [name for name in published if (name in HELD_OUT_TYPES) == (types == "held_out")]


@cache
def _table() -> dict[str, dict[str, list[list[int]]]]:
    return json.loads(VARIATIONS_FILE.read_text(encoding="utf-8"))["tasks"]
