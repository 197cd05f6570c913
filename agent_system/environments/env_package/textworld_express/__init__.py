"""TextWorldExpress (arXiv 2208.01174): eight fast text games in three folds of a thousand seeds."""

from agent_system.environments.env_package.textworld_express.options import (
    TextWorldExpressOptions,
)
from agent_system.environments.env_package.textworld_express.prompts import twx_prompts
from agent_system.environments.env_package.textworld_express.simulator import check_installed
from agent_system.environments.env_package.textworld_express.tasks import twx_tasks
from agent_system.environments.registry import EnvPackage

__all__ = ["PACKAGE", "TextWorldExpressOptions"]

PACKAGE = EnvPackage(
    name="textworld_express/TextWorldExpressEnv",
    make_env="agent_system.environments.env_package.textworld_express.env:make_env",
    options=TextWorldExpressOptions,
    prompts=twx_prompts,
    task_sets=twx_tasks,
    check=check_installed,
)
