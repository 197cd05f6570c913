"""Ray workers of a run: how many, on what, and started how."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from verl.algorithms.entropy_control import EntropyRegularizer
from verl.config.plan import RunPlan
from verl.config.root import PPOConfig
from verl.config.transport import transport_environment
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    create_colocated_worker_cls,
)
from verl.trainer.ppo.placement import rollout_placements, trainer_pool
from verl.trainer.session import worker_environment
from verl.utils.patience import Patience
from verl.workers.fsdp_workers import CriticWorker, PolicyWorker
from verl.workers.interfaces import AgentWorld
from verl.workers.rollout.rollout_workers import RolloutWorkers
from verl.workers.runtime import WorkerRuntime
from verl.workers.weight_sync.sync import WeightSync, build_weight_sync


@dataclass
class Workers:
    """The worker groups of one run, and the way from the actor's weights to the engines.

    `critic` is None without a critic.
    """

    actor: RayWorkerGroup
    critic: RayWorkerGroup | None
    rollouts: RolloutWorkers
    weights: WeightSync

    def close(self) -> None:
        """End engines and environments. The trainers end with Ray."""
        self.rollouts.close()


def process_count(config: PPOConfig, plan: RunPlan) -> int:
    """One for each place of trainers and engines, and the driver."""
    trainers = trainer_pool(config, plan)
    places = trainers.world_size * trainers.max_colocate_count
    each = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    return places + plan.rollout_workers * each + 1


def start_workers(
    config: PPOConfig,
    plan: RunPlan,
    world: AgentWorld,
    regularizer: EntropyRegularizer | None,
    total_steps: int,
) -> Workers:
    """Start trainers and rollout workers side by side: environments boot while models load."""
    pool = trainer_pool(config, plan)
    rollouts = start_rollouts(config, plan, world, pool)
    trainers = start_trainers(config, plan, pool, regularizer, total_steps)
    rollouts.wait_until_started()
    actor = trainers["actor"]
    weights = build_weight_sync(config, plan, actor, rollouts)
    return Workers(actor, trainers.get("critic"), rollouts, weights)


def start_trainers(
    config: PPOConfig,
    plan: RunPlan,
    pool: RayResourcePool,
    regularizer: EntropyRegularizer | None,
    total_steps: int,
) -> dict[str, RayWorkerGroup]:
    """`actor` and, where needed, `critic`: they share one process a rank.

    A schedule is planned over the steps in which its model is trained.
    """
    runtime = WorkerRuntime(plan.device, config.trainer.seed, config.trainer.cpu_threads_per_worker)
    classes = {
        "actor": RayClassWithInitArgs(
            ray.remote(PolicyWorker),
            config.actor_rollout_ref,
            plan,
            runtime,
            regularizer,
        )
    }
    if plan.has_critic:
        classes["critic"] = RayClassWithInitArgs(ray.remote(CriticWorker), config.critic, runtime)
    group = RayWorkerGroup(
        resource_pool=pool,
        ray_cls_with_init=create_colocated_worker_cls(class_dict=classes),
        device_name=plan.device,
        worker_env=worker_environment(config.trainer.cpu_threads_per_worker),
        patience=Patience.of(config.trainer),
    )
    trainers = group.spawn(prefix_set=classes.keys())
    steps = {"actor": total_steps - config.trainer.critic_warmup, "critic": total_steps}
    for role, workers in trainers.items():
        workers.init_model(steps[role])
    return trainers


def start_rollouts(
    config: PPOConfig, plan: RunPlan, world: AgentWorld, pool: RayResourcePool
) -> RolloutWorkers:
    """Begin to boot engines and environments; `pool` has the trainers' places."""
    placements = rollout_placements(config, plan, pool)
    env_vars = worker_environment(config.trainer.cpu_threads_per_worker)
    env_vars |= transport_environment(plan.engine.transport)
    return RolloutWorkers(world.worker_class, config, plan, placements, env_vars)
