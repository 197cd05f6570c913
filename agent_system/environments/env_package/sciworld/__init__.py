"""ScienceWorld (arXiv 2203.07540): 30 elementary-science tasks in a simulated house."""

from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.env_package.sciworld.projection import sciworld_projection
from agent_system.environments.env_package.sciworld.prompts import sciworld_prompts
from agent_system.environments.env_package.sciworld.simulator import check_installed
from agent_system.environments.env_package.sciworld.tasks import sciworld_tasks
from agent_system.environments.registry import EnvPackage

__all__ = ["PACKAGE", "SciWorldOptions", "sciworld_projection"]

PACKAGE = EnvPackage(
    name="sciworld/SciWorldEnv",
    make_env="agent_system.environments.env_package.sciworld.env:make_env",
    options=SciWorldOptions,
    prompts=sciworld_prompts,
    task_sets=lambda _, config: sciworld_tasks(config),
    check=check_installed,
)
