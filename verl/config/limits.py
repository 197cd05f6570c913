"""What a single key may be: its names, or its range."""

from __future__ import annotations

import math

from verl.algorithms.aggregation import LOSS_AGG_MODES
from verl.algorithms.kl import KL_KINDS

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"

_KL_NAMES = (*KL_KINDS, *(f"{kind}+" for kind in KL_KINDS))
_DTYPES = ("auto", "float32", "bfloat16")
_ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")
CHOICES: dict[str, tuple[str, ...]] = {
    "trainer.device": ("auto", "cuda", "cpu"),
    "trainer.resume_mode": ("auto", "disable", "resume_path"),
    "trainer.validation.modes": ("sampled", "greedy"),
    "algorithm.kl_ctrl.type": ("fixed", "adaptive"),
    "algorithm.kl_penalty": _KL_NAMES,
    f"{ACTOR}.kl_loss_type": (*_KL_NAMES, "full"),
    f"{ACTOR}.loss_agg_mode": LOSS_AGG_MODES,
    "critic.loss_agg_mode": LOSS_AGG_MODES,
    f"{ACTOR}.fsdp_config.dtype": _DTYPES,
    f"{ACTOR}.fsdp_config.mixed_precision": _DTYPES,
    "critic.model.fsdp_config.dtype": _DTYPES,
    "critic.model.fsdp_config.mixed_precision": _DTYPES,
    f"{ROLLOUT}.dtype": _DTYPES,
    f"{ROLLOUT}.mode": ("colocated", "disaggregated"),
    f"{ROLLOUT}.weight_sync": ("auto", "object_store", "nccl", "ipc"),
    "algorithm.rollout_correction": ("none", "token_tis", "sequence_tis", "token_mask"),
    "actor_rollout_ref.model.load_method": ("auto", "local", "huggingface"),
    "critic.model.load_method": ("auto", "local", "huggingface"),
    "actor_rollout_ref.model.attn_implementation": _ATTENTION,
    "critic.model.attn_implementation": _ATTENTION,
    "env.context.kind": ("turn", "trajectory"),
    "env.context.history": ("last_turns", "token_budget", "summary"),
    "env.task_weights": ("uniform_types", "uniform_tasks"),
    "env.action_format.kind": ("think_action", "plain"),
}
# (least, most) that makes sense; None where a key may be unset.
POSITIVE = (1, math.inf)
SHARE = (0.0, 1.0)
RANGES: dict[str, tuple[float, float]] = {
    "data.train_batch_size": POSITIVE,
    "data.val_batch_size": POSITIVE,
    "data.max_prompt_length": POSITIVE,
    "data.max_response_length": POSITIVE,
    "env.seed": (0, math.inf),
    "env.max_steps": POSITIVE,
    "env.rollout.n": POSITIVE,
    "env.context.history_length": (0, math.inf),
    "env.context.history_tokens": (0, math.inf),
    "env.context.history_summary_words": (0, math.inf),
    "env.pool.slots_per_worker": POSITIVE,
    "env.train.max_tasks": POSITIVE,
    "trainer.seed": (0, math.inf),
    "trainer.async_steps": (0, 1),
    "trainer.total_epochs": POSITIVE,
    "trainer.total_training_steps": POSITIVE,
    "trainer.nnodes": POSITIVE,
    "trainer.n_gpus_per_node": POSITIVE,
    "trainer.cpu_threads_per_worker": POSITIVE,
    "trainer.validation.episodes_per_task": POSITIVE,
    "trainer.max_actor_ckpt_to_keep": POSITIVE,
    f"{ACTOR}.ppo_mini_batch_size": POSITIVE,
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": POSITIVE,
    f"{ACTOR}.ppo_epochs": POSITIVE,
    f"{ACTOR}.clip_ratio": (0, math.inf),
    f"{ACTOR}.optim.lr_warmup_steps_ratio": SHARE,
    f"{ACTOR}.optim.min_lr_ratio": SHARE,
    f"{ROLLOUT}.workers": POSITIVE,
    f"{ROLLOUT}.max_num_seqs": POSITIVE,
    f"{ROLLOUT}.max_num_batched_tokens": POSITIVE,
    f"{ROLLOUT}.tensor_model_parallel_size": POSITIVE,
    f"{ROLLOUT}.gpu_memory_utilization": SHARE,
    f"{ROLLOUT}.temperature": (1e-6, math.inf),
    f"{ROLLOUT}.top_p": (1e-6, 1.0),
    f"{ROLLOUT}.val_kwargs.temperature": (0, math.inf),
    f"{ROLLOUT}.val_kwargs.top_p": (1e-6, 1.0),
    "critic.ppo_mini_batch_size": POSITIVE,
    "critic.ppo_micro_batch_size_per_gpu": POSITIVE,
    "critic.ppo_epochs": POSITIVE,
    "critic.optim.lr_warmup_steps_ratio": SHARE,
    "critic.optim.min_lr_ratio": SHARE,
    "algorithm.gamma": SHARE,
    "algorithm.lam": SHARE,
}
# Numbers that may be as small as one likes, but not 0.
ABOVE_ZERO = (
    f"{ROLLOUT}.cpu_kv_cache_gb",
    f"{ROLLOUT}.request_timeout_s",
    "algorithm.rollout_correction_max",
    "algorithm.rollout_correction_min",
    f"{ACTOR}.optim.lr",
    f"{ACTOR}.optim.grad_clip",
    "critic.optim.lr",
    "critic.optim.grad_clip",
)
