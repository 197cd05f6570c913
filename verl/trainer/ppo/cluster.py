"""Ray workers of a run: how many, on what, and started how."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray
import torch

from verl.config.root import PPOConfig
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    create_colocated_worker_cls,
)
from verl.workers.fsdp_workers import ActorRolloutRefWorker, CriticWorker
from verl.workers.interfaces import AgentWorld, EntropyRegularizer
from verl.workers.rollout.group import RolloutGroup, RolloutResources
from verl.workers.runtime import WorkerRuntime

logger = logging.getLogger(__name__)

# Trainer and engine share a GPU: the trainer's bundle keeps this much of it, the engine the rest.
TRAINER_GPU_SHARE = 0.5


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
    }


def rollout_worker_count(config: PPOConfig) -> int:
    return config.actor_rollout_ref.rollout.workers or (
        config.trainer.n_gpus_per_node * config.trainer.nnodes
    )


def start_ray(config: PPOConfig, device: str) -> None:
    """Join the cluster at `ray_kwargs.ray_init.address`, or start one on this machine.

    On a CPU a worker is a process, not a core: the local cluster has logical room for all of them.
    """
    ray_init = config.ray_kwargs.ray_init
    if ray_init.address is not None:
        ray.init(address=ray_init.address, runtime_env=ray_init.runtime_env, log_to_driver=True)
        return
    wanted = config.trainer.n_gpus_per_node + rollout_worker_count(config) + 1
    num_cpus = ray_init.num_cpus or max(os.cpu_count() or 1, wanted if device == "cpu" else 1)
    ray.init(
        num_cpus=num_cpus,
        include_dashboard=False,
        runtime_env=ray_init.runtime_env,
        logging_level=logging.WARNING,
    )


def start_workers(
    config: PPOConfig, world: AgentWorld, regularizer: EntropyRegularizer | None, total_steps: int
) -> Workers:
    """Start trainers and rollout workers side by side: environments boot while models load."""
    rollouts = start_rollouts(config, world, resolve_device(config.trainer.device))
    trainers = start_trainers(config, regularizer, total_steps)
    rollouts.wait_until_started()
    return Workers(trainers["actor"], trainers.get("critic"), rollouts)


def start_trainers(
    config: PPOConfig, regularizer: EntropyRegularizer | None, total_steps: int
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
        resource_pool=RayResourcePool(
            process_on_nodes=[config.trainer.n_gpus_per_node] * config.trainer.nnodes,
            use_gpu=device == "cuda",
            max_colocate_count=2 if device == "cuda" else 1,
        ),
        ray_cls_with_init=create_colocated_worker_cls(class_dict=classes),
        device_name=device,
        worker_env=worker_environment(config),
    )
    trainers = group.spawn(prefix_set=classes.keys())
    for workers in trainers.values():
        workers.init_model(total_steps)
    return trainers


def start_rollouts(config: PPOConfig, world: AgentWorld, device: str) -> RolloutGroup:
    """Begin to boot engines and environment slots."""
    resources = RolloutResources(
        num_cpus=1,
        num_gpus=1 - TRAINER_GPU_SHARE if device == "cuda" else 0,
        env_vars=worker_environment(config),
    )
    return RolloutGroup(world.worker_class, config, rollout_worker_count(config), device, resources)
