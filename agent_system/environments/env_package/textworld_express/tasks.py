"""TextWorldExpress's task lists: a fold, and how many seeds of each game.

| name | tasks |
|---|---|
| train, dev, test | all 1,000 seeds of the fold for each of the eight games |
| train:N, dev:N, test:N | the first N seeds of the fold for each game |
| train:M-N, .. | its seeds from number M up to, not including, number N |

The folds have no seed in common, and the simulator keeps objects and recipes apart between them.
"""

from __future__ import annotations

from agent_system.config import TaskSetConfig
from agent_system.environments.env_package.textworld_express.games import GAMES
from agent_system.environments.seeds import SeedTasks
from agent_system.types import Task

_LISTS = SeedTasks(
    lambda game, fold, seed: Task(game, {"game": game, "fold": fold, "seed": seed}),
    tuple(GAMES),
    environment="textworld_express/TextWorldExpressEnv",
)


def twx_tasks(config: TaskSetConfig) -> list[Task]:
    """The list named `config.name`, or the one in that file (*.json), filtered and cut.

    `config.tasks` chooses games. Raises ValueError on an unknown list, game or number of seeds.
    """
    return _LISTS(config)
