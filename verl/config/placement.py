"""How many engines a run has, and whether its GPUs hold them beside the trainers."""

from __future__ import annotations

from collections.abc import Iterator

from verl.config.root import PPOConfig
from verl.utils.errors import UserError

WORKERS = "actor_rollout_ref.rollout.workers"
TP = "actor_rollout_ref.rollout.tensor_model_parallel_size"


def rollout_worker_count(config: PPOConfig) -> int:
    """Engines of the run; by default as many as the places of the trainers hold."""
    rollout = config.actor_rollout_ref.rollout
    if rollout.workers is not None:
        return rollout.workers
    return max(1, _trainer_places(config) // rollout.tensor_model_parallel_size)


def rollout_workers_per_node(config: PPOConfig) -> int:
    """Rollout workers are spread over the nodes."""
    return -(-rollout_worker_count(config) // config.trainer.nnodes)


def engine_processes_per_node(config: PPOConfig) -> int:
    """Ranks of all engines of a node: GPUs, or on a CPU processes that compute."""
    tensor_parallel = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    return rollout_workers_per_node(config) * tensor_parallel


def has_own_gpus(config: PPOConfig, device: str) -> bool:
    """Whether the engines have GPUs that no trainer uses. On a CPU nobody owns anything."""
    return device == "cuda" and config.actor_rollout_ref.rollout.mode == "disaggregated"


def check_placement(config: PPOConfig, device: str, engine: str) -> None:
    """Refuse engines that have no place.

    Args:
        device: cuda or cpu.
        engine: vllm or hf.

    Raises:
        UserError: the first problem found.
    """
    for problem in _problems(config, device, engine):
        raise UserError(problem)


def _trainer_places(config: PPOConfig) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node


def _problems(config: PPOConfig, device: str, engine: str) -> Iterator[str]:
    tensor_parallel = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    if tensor_parallel > 1 and engine != "vllm":
        yield f"{TP}={tensor_parallel} needs rollout.name=vllm; the engine here is {engine}; set 1"
    if has_own_gpus(config, device):
        yield from _disaggregated_problems(config)
    elif device == "cuda":
        yield from _colocated_problems(config)


def _disaggregated_problems(config: PPOConfig) -> Iterator[str]:
    if config.actor_rollout_ref.rollout.workers is None:
        yield (
            "rollout.mode=disaggregated gives engines GPUs of their own, so it has to know how "
            f"many; set {WORKERS} (each takes {TP} GPUs)"
        )


def _colocated_problems(config: PPOConfig) -> Iterator[str]:
    rollout, run = config.actor_rollout_ref.rollout, config.trainer
    tensor_parallel, places = rollout.tensor_model_parallel_size, _trainer_places(config)
    if run.n_gpus_per_node % tensor_parallel:
        yield (
            f"{TP}={tensor_parallel} does not divide trainer.n_gpus_per_node={run.n_gpus_per_node}"
            ", and an engine beside the trainers stays on one node; choose a divisor"
        )
    room = places // tensor_parallel
    if rollout_worker_count(config) > room:
        yield (
            f"{WORKERS}={rollout.workers} engines of {tensor_parallel} GPUs are more than the "
            f"{places} GPUs of the run hold (trainer.nnodes x trainer.n_gpus_per_node); lower it "
            f"to {room} or leave it unset"
        )
    if run.async_steps > 0:
        yield (
            f"trainer.async_steps={run.async_steps} rolls out while the trainer trains, and "
            "colocated engines would need the same GPUs at the same time; set "
            f"actor_rollout_ref.rollout.mode=disaggregated with {WORKERS}, or async_steps=0"
        )
