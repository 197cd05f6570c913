"""TextWorldExpress's task lists: a fold, and how many seeds of each game.

| name | tasks |
|---|---|
| train, dev, test | all 1,000 seeds of the fold for each of the eight games |
| train:N, dev:N, test:N | the first N seeds of the fold for each game |
| train:M-N, .. | its seeds from number M up to, not including, number N |

A *.json file of tasks is a list too, and the filter `tasks` chooses games. The folds have no seed
in common, and the simulator keeps objects and recipes apart between them.
"""

from __future__ import annotations

from agent_system.environments.env_package.textworld_express.games import GAMES
from agent_system.environments.seeds import SeedTasks
from agent_system.types import Task

twx_tasks = SeedTasks(
    lambda game, fold, seed: Task(game, {"game": game, "fold": fold, "seed": seed}),
    tuple(GAMES),
    environment="textworld_express/TextWorldExpressEnv",
)
