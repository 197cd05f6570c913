"""Where the engines of a run are placed: beside the trainers, or on GPUs of their own."""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verl.config.plan import RunPlan
from verl.config.root import PPOConfig
from verl.single_controller.ray.base import RayResourcePool
from verl.single_controller.ray.resource_pool import Place
from verl.workers.rollout.rollout_workers import RolloutPlacement

# Who shares a GPU: the training worker (actor and critic in one process) and a colocated engine.
PROCESSES_PER_GPU = 2


def trainer_pool(config: PPOConfig, plan: RunPlan) -> RayResourcePool:
    """One place a training worker: its part of a GPU, or on a CPU machine a logical CPU."""
    is_shared = plan.device == "cuda" and not plan.engines_own_gpus
    return RayResourcePool(
        process_on_nodes=[config.trainer.n_gpus_per_node] * config.trainer.nnodes,
        use_gpu=plan.device == "cuda",
        max_colocate_count=PROCESSES_PER_GPU if is_shared else 1,
        apart=True,
    )


def engine_pool(config: PPOConfig, plan: RunPlan) -> RayResourcePool:
    """Whole GPUs that no trainer uses: the ones of an engine together on one node."""
    tensor_parallel = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    return RayResourcePool(
        [tensor_parallel] * plan.rollout_workers, use_gpu=True, max_colocate_count=1
    )


def rollout_placements(
    config: PPOConfig, plan: RunPlan, trainers: RayResourcePool
) -> list[RolloutPlacement]:
    """Where each rollout worker runs. Raises UserError when the cluster has no room."""
    count = plan.rollout_workers
    if plan.device != "cuda":  # processes: the cluster spreads them
        return [RolloutPlacement("SPREAD", num_cpus=1, num_gpus=0)] * count
    pool = engine_pool(config, plan) if plan.engines_own_gpus else trainers
    places = pool.places("STRICT_PACK", plan.device)
    tensor_parallel = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    share = 1 / pool.max_colocate_count
    return [
        engine_placement(places[i * tensor_parallel : (i + 1) * tensor_parallel], share)
        for i in range(count)
    ]


def engine_placement(places: Sequence[Place], share: float) -> RolloutPlacement:
    """One engine over `places`, which are of one placement group; it takes `share` of each GPU.

    With one place vLLM computes in a child of the rollout worker, on the worker's GPU. With
    several vLLM starts Ray actors on the places (its Ray executor reads the two variables), and
    the rollout worker itself needs no GPU.
    """
    strategy = PlacementGroupSchedulingStrategy(
        places[0].group,
        placement_group_bundle_index=places[0].bundle,
        placement_group_capture_child_tasks=True,
    )
    if len(places) == 1:
        return RolloutPlacement(strategy, num_cpus=1, num_gpus=share)
    executor = {
        "VLLM_RAY_BUNDLE_INDICES": ",".join(str(place.bundle) for place in places),
        "VLLM_RAY_PER_WORKER_GPUS": str(share),
    }
    return RolloutPlacement(strategy, num_cpus=1, num_gpus=0, env_vars=executor)
