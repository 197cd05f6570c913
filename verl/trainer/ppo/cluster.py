"""Ray workers of a run: how many, on what, and started how."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray
import torch

from verl.algorithms.entropy_control import EntropyRegularizer
from verl.config.machine import resolve_engine
from verl.config.placement import rollout_worker_count
from verl.config.root import PPOConfig
from verl.config.transport import resolve_transport, transport_environment
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    create_colocated_worker_cls,
)
from verl.trainer.ppo.placement import rollout_placements, trainer_pool
from verl.utils.errors import UserError
from verl.workers.fsdp_workers import CriticWorker, PolicyWorker
from verl.workers.interfaces import AgentWorld
from verl.workers.rollout.rollout_workers import RolloutWorkers
from verl.workers.runtime import WorkerRuntime
from verl.workers.weight_sync.sync import WeightSync, build_weight_sync

logger = logging.getLogger(__name__)


@dataclass
class Workers:
    """The worker groups of one run, and the way from the actor's weights to the engines.

    `critic` is None without a critic.
    """

    actor: RayWorkerGroup
    critic: RayWorkerGroup | None
    rollouts: RolloutWorkers
    weights: WeightSync


def resolve_device(device: str) -> str:
    """`auto` is cuda where torch sees a GPU, else cpu."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def needs_reference(config: PPOConfig) -> bool:
    """A KL term compares the policy with its start; an evaluation has none."""
    if config.trainer.val_only:
        return False
    return config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward


def needs_critic(config: PPOConfig) -> bool:
    """An evaluation reads no values."""
    return config.algorithm.needs_critic and not config.trainer.val_only


def worker_environment(config: PPOConfig) -> dict[str, str]:
    """Environment variables of every worker process."""
    return {
        "OMP_NUM_THREADS": str(config.trainer.cpu_threads_per_worker),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars of several processes would overwrite the run's
    }


def rollout_environment(config: PPOConfig, device: str) -> dict[str, str]:
    """The same for rollout workers, with what the way of their weights needs."""
    policy = config.actor_rollout_ref
    transport = resolve_transport(
        policy.rollout, device, resolve_engine(policy.rollout.name), policy.model.lora_rank > 0
    )
    return worker_environment(config) | transport_environment(transport)


def start_ray(config: PPOConfig, device: str) -> None:
    """Join the cluster at `ray_kwargs.ray_init.address`, or start one on this machine.

    A worker is a process, not a core: the local cluster has logical room for all of them.

    Raises:
        UserError: there is no cluster at the address.
    """
    ray_init = config.ray_kwargs.ray_init
    options = {"runtime_env": ray_init.runtime_env, "logging_level": logging.ERROR}
    if ray_init.address is not None:
        try:
            ray.init(address=ray_init.address, **options)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at ray_kwargs.ray_init.address={ray_init.address} "
                f"({error}); start one with `ray start --head`, or leave the address out"
            ) from error
        return
    num_cpus = ray_init.num_cpus or max(os.cpu_count() or 1, _logical_cpus(config, device))
    # "local": a RAY_ADDRESS in the environment must not decide where a run goes
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)


def _logical_cpus(config: PPOConfig, device: str) -> int:
    """One for each place of trainers and engines and one for the driver."""
    trainers = trainer_pool(config, device)
    places = trainers.world_size * trainers.max_colocate_count
    each = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    return places + rollout_worker_count(config) * each + 1


def start_workers(
    config: PPOConfig, world: AgentWorld, regularizer: EntropyRegularizer | None, total_steps: int
) -> Workers:
    """Start trainers and rollout workers side by side: environments boot while models load."""
    pool = resource_pool(config)
    rollouts = start_rollouts(config, world, pool)
    trainers = start_trainers(config, pool, regularizer, total_steps)
    rollouts.wait_until_started()
    actor, device = trainers["actor"], resolve_device(config.trainer.device)
    weights = build_weight_sync(config, device, actor, rollouts)
    return Workers(actor, trainers.get("critic"), rollouts, weights)


def resource_pool(config: PPOConfig) -> RayResourcePool:
    """The places of the trainers (see `trainer_pool`)."""
    return trainer_pool(config, resolve_device(config.trainer.device))


def start_trainers(
    config: PPOConfig,
    pool: RayResourcePool,
    regularizer: EntropyRegularizer | None,
    total_steps: int,
) -> dict[str, RayWorkerGroup]:
    """`actor` and, where needed, `critic`: they share one process a rank."""
    device = resolve_device(config.trainer.device)
    runtime = WorkerRuntime(device, config.trainer.seed, config.trainer.cpu_threads_per_worker)
    classes = {
        "actor": RayClassWithInitArgs(
            ray.remote(PolicyWorker),
            config.actor_rollout_ref,
            runtime,
            regularizer,
            needs_reference(config),
        )
    }
    if needs_critic(config):
        classes["critic"] = RayClassWithInitArgs(ray.remote(CriticWorker), config.critic, runtime)
    group = RayWorkerGroup(
        resource_pool=pool,
        ray_cls_with_init=create_colocated_worker_cls(class_dict=classes),
        device_name=device,
        worker_env=worker_environment(config),
    )
    trainers = group.spawn(prefix_set=classes.keys())
    for workers in trainers.values():
        workers.init_model(total_steps)
    return trainers


def start_rollouts(config: PPOConfig, world: AgentWorld, pool: RayResourcePool) -> RolloutWorkers:
    """Begin to boot engines and environments; `pool` has the trainers' places."""
    device = resolve_device(config.trainer.device)
    placements = rollout_placements(config, device, pool)
    env_vars = rollout_environment(config, device)
    return RolloutWorkers(world.worker_class, config, device, placements, env_vars)
