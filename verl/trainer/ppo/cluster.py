"""Ray workers of a run: how many, on what, and started how."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verl.config.root import PPOConfig
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    create_colocated_worker_cls,
)
from verl.utils.errors import UserError
from verl.workers.fsdp_workers import ActorRolloutRefWorker, CriticWorker
from verl.workers.interfaces import AgentWorld, EntropyRegularizer
from verl.workers.rollout.group import RolloutGroup, RolloutPlacement
from verl.workers.runtime import WorkerRuntime

logger = logging.getLogger(__name__)

# Who shares a GPU: the training worker (actor and critic in one process) and the rollout worker.
GROUPS_PER_GPU = 2


@dataclass
class Workers:
    """The worker groups of one run. `critic` is None without a critic."""

    actor: RayWorkerGroup
    critic: RayWorkerGroup | None
    rollouts: RolloutGroup


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
    """Only GAE reads values."""
    return config.algorithm.adv_estimator == "gae" and not config.trainer.val_only


def worker_environment(config: PPOConfig) -> dict[str, str]:
    """Environment variables of every worker process."""
    return {
        "OMP_NUM_THREADS": str(config.trainer.cpu_threads_per_worker),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars of several processes would overwrite the run's
    }


def rollout_worker_count(config: PPOConfig) -> int:
    return config.actor_rollout_ref.rollout.workers or (
        config.trainer.n_gpus_per_node * config.trainer.nnodes
    )


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
    places = config.trainer.n_gpus_per_node * (GROUPS_PER_GPU if device == "cuda" else 1)
    wanted = places + rollout_worker_count(config) + 1
    num_cpus = ray_init.num_cpus or max(os.cpu_count() or 1, wanted)
    # "local": a RAY_ADDRESS in the environment must not decide where a run goes
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **options)


def start_workers(
    config: PPOConfig, world: AgentWorld, regularizer: EntropyRegularizer | None, total_steps: int
) -> Workers:
    """Start trainers and rollout workers side by side: environments boot while models load."""
    pool = resource_pool(config)
    rollouts = start_rollouts(config, world, pool)
    trainers = start_trainers(config, pool, regularizer, total_steps)
    rollouts.wait_until_started()
    return Workers(trainers["actor"], trainers.get("critic"), rollouts)


def resource_pool(config: PPOConfig) -> RayResourcePool:
    """One place a training worker: a GPU, or on a CPU machine a logical CPU."""
    is_gpu = resolve_device(config.trainer.device) == "cuda"
    return RayResourcePool(
        process_on_nodes=[config.trainer.n_gpus_per_node] * config.trainer.nnodes,
        use_gpu=is_gpu,
        max_colocate_count=GROUPS_PER_GPU if is_gpu else 1,
    )


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
            ray.remote(ActorRolloutRefWorker),
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


def start_rollouts(config: PPOConfig, world: AgentWorld, pool: RayResourcePool) -> RolloutGroup:
    """Begin to boot engines and environments: beside the trainers on GPUs, else spread."""
    device = resolve_device(config.trainer.device)
    count = rollout_worker_count(config)
    placements: list[RolloutPlacement] = [RolloutPlacement("SPREAD", 1, 0)] * count
    if device == "cuda":
        places = pool.places("STRICT_PACK", device)
        placements = [
            RolloutPlacement(
                PlacementGroupSchedulingStrategy(places[rank].group, True, places[rank].bundle),
                num_cpus=1,
                num_gpus=1 / GROUPS_PER_GPU,
            )
            for rank in range(count)
        ]
    return RolloutGroup(world.worker_class, config, device, placements, worker_environment(config))
