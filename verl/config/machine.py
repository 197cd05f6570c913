"""Whether this machine has the devices, cores and memory that the configuration asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from verl.config.root import PPOConfig
from verl.utils.errors import UserError

GB = 1e9
# Lower bounds, so that only what surely fails is refused.
WORKER_GB = 0.5  # a Python process with torch
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


def check_machine(config: PPOConfig, device: str, machine: Machine | None = None) -> None:
    """Refuse an engine this version lacks and more workers than one node can hold.

    On an existing Ray cluster the nodes are not this machine, so only the engine is checked.

    Raises:
        UserError: what is missing, and what to change.
    """
    if config.actor_rollout_ref.rollout.name == "vllm":
        raise UserError(
            "actor_rollout_ref.rollout.name=vllm is not available in this version; use hf "
            "(--engine hf)"
        )
    if config.ray_kwargs.ray_init.address is not None:
        return
    machine = machine or Machine.here()
    if device == "cuda":
        _check_gpus(config, machine)
    else:
        _check_cores(config, machine)
        _check_memory(config, machine)


def _check_gpus(config: PPOConfig, machine: Machine) -> None:
    wanted = config.trainer.n_gpus_per_node
    if wanted > machine.gpus:
        remedy = f"lower it to {machine.gpus}" if machine.gpus else "set trainer.device=cpu"
        raise UserError(
            f"trainer.n_gpus_per_node={wanted} (--n_gpus), but torch sees {machine.gpus} GPUs on "
            f"this machine; {remedy}, or give ray_kwargs.ray_init.address of a cluster"
        )


def _check_cores(config: PPOConfig, machine: Machine) -> None:
    """Training ranks compute at the same time; a rank without a core would slow all the others."""
    ranks = config.trainer.n_gpus_per_node
    for key, wanted in (
        ("trainer.n_gpus_per_node (--n_gpus)", ranks),
        ("actor_rollout_ref.rollout.workers", rollout_workers_per_node(config)),
    ):
        if wanted > machine.cores:
            raise UserError(
                f"{key} asks for {wanted} workers on this CPU machine, which has {machine.cores} "
                f"cores; lower it to {machine.cores} or less"
            )
    reserved = ranks + rollout_workers_per_node(config) + 1
    given = config.ray_kwargs.ray_init.num_cpus
    if given is not None and given < reserved:
        raise UserError(
            f"ray_kwargs.ray_init.num_cpus={given} is less than one for each of the {reserved} "
            "processes, so the run would wait forever; raise it or leave it unset"
        )


def _check_memory(config: PPOConfig, machine: Machine) -> None:
    rollouts = rollout_workers_per_node(config)
    workers = config.trainer.n_gpus_per_node + rollouts
    slots = rollouts * config.env.pool.slots_per_worker
    model_gb = _model_gb(config.actor_rollout_ref.model.path)
    models = model_gb * (MODEL_COPIES_TRAINED + rollouts)
    needed = workers * WORKER_GB + slots * ENV_SLOT_GB + models
    if needed > machine.memory_gb:
        raise UserError(
            f"{workers} workers, {slots} environment slots and the model need about {needed:.1f} "
            f"GB, but {machine.memory_gb:.1f} GB are free; lower env.pool.slots_per_worker, "
            "actor_rollout_ref.rollout.workers or trainer.n_gpus_per_node"
        )


def rollout_workers_per_node(config: PPOConfig) -> int:
    """Rollout workers are spread over the nodes; by default one for each training worker."""
    run, asked = config.trainer, config.actor_rollout_ref.rollout.workers
    return run.n_gpus_per_node if asked is None else -(-asked // run.nnodes)


def _model_gb(path: str) -> float:
    """Size of the weights in a local folder; 0 for a name."""
    return sum(file.stat().st_size for file in Path(path).expanduser().glob("*.safetensors")) / GB
