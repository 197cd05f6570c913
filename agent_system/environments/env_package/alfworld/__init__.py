"""ALFWorld (arXiv 2010.03768): six types of household tasks in text, TextWorld on real layouts."""

from agent_system.environments.env_package.alfworld.data import check_installed, find_data_dir
from agent_system.environments.env_package.alfworld.options import AlfWorldOptions
from agent_system.environments.env_package.alfworld.projection import alfworld_projection
from agent_system.environments.env_package.alfworld.prompts import alfworld_prompts
from agent_system.environments.env_package.alfworld.tasks import ENV_NAME, alfworld_tasks
from agent_system.environments.registry import EnvPackage

__all__ = ["PACKAGE", "AlfWorldOptions", "alfworld_projection"]

PACKAGE = EnvPackage(
    name=ENV_NAME,
    make_env="agent_system.environments.env_package.alfworld.env:make_env",
    options=AlfWorldOptions,
    prompts=alfworld_prompts,
    task_sets=lambda options, config: alfworld_tasks(config, find_data_dir(options.data_dir)),
    check=check_installed,
)
