"""The whole configuration, and its registration with Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from verl.config.actor import ActorRolloutRefConfig
from verl.config.algorithm import AlgorithmConfig, DataConfig
from verl.config.critic import CriticConfig
from verl.config.trainer import RayConfig, RunConfig


@dataclass
class PPOConfig:
    """`env` and `epo` are schemas of other packages: registered with Hydra by import path."""

    actor_rollout_ref: ActorRolloutRefConfig = field(default_factory=ActorRolloutRefConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: RunConfig = field(default_factory=RunConfig)
    ray_kwargs: RayConfig = field(default_factory=RayConfig)
    env: Any = MISSING
    epo: Any = MISSING


def register_schemas(env_schema: type, epo_schema: type) -> None:
    """Make the dataclasses Hydra's schema. Calling it again replaces the entries."""
    store = ConfigStore.instance()
    store.store(name="ppo_schema", node=PPOConfig)
    store.store(group="env", name="schema", node=env_schema)
    store.store(group="epo", name="schema", node=epo_schema)
