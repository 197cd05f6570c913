"""The configuration as arguments of vLLM's engine. Does not import vLLM."""

from __future__ import annotations

from typing import Any

from verl.config.actor import ActorRolloutRefConfig, RolloutConfig
from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan
from verl.utils.errors import UserError
from verl.workers.architecture import keeps_states
from verl.workers.model_loading import load_architecture, resolve_model_path

WORKER_EXTENSION = "verl.workers.rollout.vllm_rollout.worker_extension.WeightReceiver"
GIB = 2**30
# A prompt is cached in whole blocks; vLLM's default on a CPU is 128 tokens, more than most turns.
CPU_BLOCK_SIZE = 32
CPU_BATCHED_TOKENS = 2048  # tokens of one engine step on a CPU
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for


def engine_args(config: ActorRolloutRefConfig, plan: EnginePlan) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs`.

    Raises:
        UserError: the model does not exist, or log-probs of this sampling cannot be had.
    """
    model, rollout = config.model, config.rollout
    arguments = {
        "model": resolve_model_path(model.path, model.load_method),
        "tokenizer": resolve_model_path(model.tokenizer_path or model.path, model.load_method),
        "trust_remote_code": model.trust_remote_code,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "max_model_len": plan.max_model_len,
        "max_num_seqs": rollout.max_num_seqs,
        "max_num_batched_tokens": rollout.max_num_batched_tokens,
        "tensor_parallel_size": rollout.tensor_model_parallel_size,
        "enable_chunked_prefill": rollout.enable_chunked_prefill,
        "enable_prefix_caching": rollout.enable_prefix_caching,
        "enforce_eager": _enforce_eager(rollout, plan.device),
        "logprobs_mode": logprobs_mode(rollout),
        "worker_extension_cls": WORKER_EXTENSION,
        "language_model_only": True,  # nothing of a vision-language model but what is trained
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if plan.device == "cpu":
        arguments |= _cpu_args(rollout, plan.max_model_len)
        if keeps_states(load_architecture(model)):  # vLLM caches those by chunks of a prefill
            arguments["enable_prefix_caching"] = False
    else:
        arguments |= _cuda_args(rollout, plan.transport)
    return arguments | (_lora_args(model) if plan.takes_adapters else {})


def logprobs_mode(rollout: RolloutConfig) -> str:
    """The mode in which vLLM's log-probs are of softmax(logits / temperature), before any filter.

    vLLM has them after temperature and filter, or before both. So in validation with a filter of
    its own, log-probs are those after the filter; nothing there uses them.

    Raises:
        UserError: training samples with a filter and a temperature other than 1.
    """
    if rollout.top_p == 1.0 and rollout.top_k in (-1, 0):
        return "processed_logprobs"
    if rollout.temperature == 1.0:
        return "raw_logprobs"
    raise UserError(
        f"rollout.temperature={rollout.temperature} together with top_p={rollout.top_p}, "
        f"top_k={rollout.top_k} is not possible with vLLM, whose log-probs would be of another "
        "softmax than the loss; set temperature=1.0, switch both filters off (top_p=1.0, "
        "top_k=-1) or use rollout.name=hf"
    )


def uses_sleep_mode(rollout: RolloutConfig, device: str) -> bool:
    """Whether the engine gives its GPU's memory to the trainer between rollouts."""
    return rollout.free_cache_engine and rollout.mode == "colocated" and device == "cuda"


def _enforce_eager(rollout: RolloutConfig, device: str) -> bool:
    return device == "cpu" if rollout.enforce_eager is None else rollout.enforce_eager


def _cpu_args(rollout: RolloutConfig, max_model_len: int) -> dict[str, Any]:
    """Prompts are prefilled whole: on a CPU, vLLM 0.32 dies when it cuts that of a request with a
    seed. So every prompt must fit into one engine step."""
    step = rollout.max_num_batched_tokens or CPU_BATCHED_TOKENS
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(step, max_model_len),
        "kv_cache_memory_bytes": int(rollout.cpu_kv_cache_gb * GIB),
        "block_size": CPU_BLOCK_SIZE,
        "distributed_executor_backend": "mp",
    }


def _cuda_args(rollout: RolloutConfig, transport: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "gpu_memory_utilization": rollout.gpu_memory_utilization,
        "enable_sleep_mode": uses_sleep_mode(rollout, "cuda"),
    }
    if rollout.tensor_model_parallel_size > 1:
        arguments["distributed_executor_backend"] = "ray"
    if transport != "object_store":
        arguments["weight_transfer_config"] = {"backend": transport}
    return arguments


def _lora_args(model: ModelConfig) -> dict[str, Any]:
    """Room for one adapter: updates replace it in place."""
    room = next((rank for rank in LORA_RANKS if rank >= model.lora_rank), None)
    if room is None:
        raise UserError(
            f"model.lora_rank={model.lora_rank} is more than vLLM's largest, {LORA_RANKS[-1]}; "
            "lower it or use rollout.name=hf"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
