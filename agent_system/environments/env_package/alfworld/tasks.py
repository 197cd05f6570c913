"""ALFWorld's task lists by name. A task is a game; its name is the task's type.

| name | games | types |
|---|---|---|
| train, valid_seen, valid_unseen | of that split | all six |
| held_out_types_train | train | the four below |
| held_out_types_test | valid_seen | the two held-out ones |

valid_seen has the rooms of the training games, valid_unseen has other rooms. The held-out types are
one with an appliance that is not needed in training (cool; heat and clean are there to generalise
from) and the longest one (two objects). Their test is in known rooms, so that only the type is new;
name valid_unseen with `tasks` for both at once.
"""

from __future__ import annotations

from pathlib import Path

from agent_system.config import TaskSetConfig
from agent_system.environments.env_package.alfworld.data import TASK_TYPES, list_games
from agent_system.environments.tasks import load_task_file, select_tasks
from agent_system.types import Task

ENV_NAME = "alfworld/AlfredTWEnv"
HELD_OUT_TYPES = frozenset({"pick_cool_then_place_in_recep", "pick_two_obj_and_place"})
_SEEN_TYPES = frozenset(TASK_TYPES) - HELD_OUT_TYPES

_LISTS: dict[str, tuple[str, frozenset[str]]] = {
    "train": ("train", frozenset(TASK_TYPES)),
    "valid_seen": ("valid_seen", frozenset(TASK_TYPES)),
    "valid_unseen": ("valid_unseen", frozenset(TASK_TYPES)),
    "held_out_types_train": ("train", _SEEN_TYPES),
    "held_out_types_test": ("valid_seen", HELD_OUT_TYPES),
}


def alfworld_tasks(config: TaskSetConfig, data_dir: Path) -> list[Task]:
    """The list named `config.name`, or the one in that file (*.json), filtered and cut.

    Raises ValueError on an unknown name or task type, when there are no games in `data_dir` (with
    the two ways to get some) and when nothing is left.
    """
    if config.name.endswith(".json"):
        return select_tasks(load_task_file(config.name, ENV_NAME), config)
    if config.name not in _LISTS:
        raise ValueError(
            f"unknown task list '{config.name}'; available: {', '.join(_LISTS)}, or a *.json file"
        )
    split, types = _LISTS[config.name]
    games = list_games(data_dir, split)
    tasks = [Task(game.task_type, {"game": game.path}) for game in games if game.task_type in types]
    return select_tasks(tasks, config)
