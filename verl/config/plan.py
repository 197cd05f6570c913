"""What a run is made of, decided once: whatever `auto` and unset keys stand for on this machine.

The driver makes the plan before anything starts; everybody else reads it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from datetime import date

import torch

from verl.config.model import ModelConfig, compute_dtype
from verl.config.root import PPOConfig
from verl.config.transport import Transport, resolve_transport
from verl.utils.errors import UserError


@dataclass(frozen=True)
class EnginePlan:
    """What the builder of a rollout engine needs beside the configuration of the policy."""

    name: str  # never auto: hf, vllm or an import path
    device: str  # cuda | cpu
    dtype: torch.dtype  # of the weights that it is sent
    max_model_len: int  # tokens of a prompt and its response together
    transport: Transport = "object_store"  # the way its weights take
    takes_adapters: bool = False  # of a LoRA policy; else it is sent merged weights

    @property
    def reads_checkpoints(self) -> bool:
        """Whether it is sent tensors as the model's checkpoint has them, not as transformers
        holds them in memory."""
        return self.name == "vllm"


@dataclass(frozen=True)
class RunPlan:
    """`engine` describes each of the `rollout_workers` engines (replicas) of the run.

    A critic and a reference are built only where a step reads them: an evaluation has neither.
    `chat_date` is today for the chat template, ISO: a run that is resumed keeps the first one.
    """

    device: str  # cuda | cpu
    engine: EnginePlan
    rollout_workers: int
    rollout_workers_per_node: int  # on the fullest node
    engine_processes_per_node: int  # ranks of all engines there: GPUs, or CPU processes
    engines_own_gpus: bool  # that no trainer uses; on a CPU nobody owns anything
    has_critic: bool
    has_reference: bool
    chat_date: str


def make_plan(config: PPOConfig) -> RunPlan:
    """Raises UserError when `rollout.weight_sync` names a way that is impossible here."""
    run, policy = config.trainer, config.actor_rollout_ref
    device = resolve_device(run.device)
    penalised = policy.actor.use_kl_loss or config.algorithm.use_kl_in_reward
    workers = _rollout_workers(config)
    per_node = -(-workers // run.nnodes)
    return RunPlan(
        device=device,
        engine=_engine_plan(config, device),
        rollout_workers=workers,
        rollout_workers_per_node=per_node,
        engine_processes_per_node=per_node * policy.rollout.tensor_model_parallel_size,
        engines_own_gpus=device == "cuda" and policy.rollout.mode == "disaggregated",
        has_critic=config.algorithm.needs_critic and not run.val_only,
        has_reference=penalised and not run.val_only,
        chat_date=chat_date(policy.model),
    )


def chat_date(model: ModelConfig) -> str:
    """What a run that starts now takes for today in its prompts. Raises UserError on no date."""
    if model.chat_template_date is None:
        return date.today().isoformat()
    try:
        return date.fromisoformat(model.chat_template_date).isoformat()
    except ValueError as error:
        raise UserError(
            f"model.chat_template_date={model.chat_template_date} is no date; write it as "
            "2026-01-31, or leave it unset"
        ) from error


def resolve_device(name: str) -> str:
    """`auto` is cuda where torch sees a GPU, else cpu."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _engine_plan(config: PPOConfig, device: str) -> EnginePlan:
    policy, data = config.actor_rollout_ref, config.data
    rollout = policy.rollout
    name = rollout.name
    if name == "auto":
        name = "vllm" if is_installed("vllm") else "hf"
    has_adapters = policy.model.lora_rank > 0
    return EnginePlan(
        name=name,
        device=device,
        dtype=compute_dtype(rollout.dtype, device),
        max_model_len=rollout.max_model_len or data.max_prompt_length + data.max_response_length,
        transport=resolve_transport(rollout, device, name, has_adapters),
        takes_adapters=has_adapters and name == "vllm",
    )


def _rollout_workers(config: PPOConfig) -> int:
    """By default as many as the places of the trainers hold."""
    run, rollout = config.trainer, config.actor_rollout_ref.rollout
    if rollout.workers is not None:
        return rollout.workers
    return max(1, run.nnodes * run.n_gpus_per_node // rollout.tensor_model_parallel_size)
