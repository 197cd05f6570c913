"""A contract test kit: everything the rollout loop relies on, tried on any environment.

from agent_system.environments.testing import check_env

def test_my_environment():
    check_env("my_module:PACKAGE", gold_path=lambda task, info: ["open door"])
"""

from agent_system.environments.testing.check import EnvContractError, EnvReport, check_env

__all__ = ["EnvContractError", "EnvReport", "check_env"]
