"""Which way the weights take from the trainer's memory to the engines'."""

from __future__ import annotations

from typing import Literal, cast

from verl.config.actor import RolloutConfig
from verl.utils.errors import UserError

Transport = Literal["object_store", "nccl", "ipc"]
# vLLM's own transports, from GPU memory to GPU memory, and the placement that each can serve.
SERVED_MODE: dict[str, str] = {"nccl": "disaggregated", "ipc": "colocated"}
WHY_ONLY_THAT_MODE = {
    "nccl": "trainer and engine share a GPU, which NCCL refuses",
    "ipc": "trainer and engine share no GPU, and ipc hands over the memory of one",
}


def resolve_transport(rollout: RolloutConfig, device: str, engine: str, lora: bool) -> Transport:
    """What `rollout.weight_sync` stands for: `auto` is the fastest way that is possible here.

    Args:
        device: cuda or cpu.
        engine: vllm or hf.
        lora: the policy is trained by LoRA adapters.

    Raises:
        UserError: the chosen transport is impossible here.
    """
    asked, problem = rollout.weight_sync, _why_not_direct(rollout, device, engine, lora)
    if asked == "object_store" or (asked == "auto" and problem is not None):
        return "object_store"
    if asked == "auto":
        return "ipc" if rollout.mode == "colocated" else "nccl"
    if problem is None and SERVED_MODE[asked] != rollout.mode:
        problem = f"with rollout.mode={rollout.mode} {WHY_ONLY_THAT_MODE[asked]}"
    if problem is not None:
        raise UserError(
            f"actor_rollout_ref.rollout.weight_sync={asked} is not possible: {problem}; set it to "
            "auto"
        )
    return cast(Transport, asked)


def transport_environment(transport: Transport) -> dict[str, str]:
    """Environment variables that an engine needs to receive weights this way."""
    # A CUDA handle travels to vLLM's own process inside a message, as pickled Python objects.
    return {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if transport == "ipc" else {}


def _why_not_direct(rollout: RolloutConfig, device: str, engine: str, lora: bool) -> str | None:
    """Why weights cannot go from GPU to GPU through vLLM, whichever transport; None if they can."""
    if device != "cuda":
        return f"it moves weights between GPUs, and this run is on {device}"
    if engine != "vllm":
        return f"it is a part of vLLM, and the engine is {engine}"
    if lora:
        return "it sends all weights, and a LoRA policy (model.lora_rank) sends its adapters alone"
    if rollout.check_weights:
        return "rollout.check_weights=true compares bytes that it never brings to one place"
    return None
