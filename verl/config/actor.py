"""`actor_rollout_ref.*`: the policy, its reference and the engine that samples from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.algorithms.aggregation import LOSS_AGG_MODES
from verl.algorithms.kl import KL_NAMES
from verl.algorithms.policy_losses import POLICY_LOSSES
from verl.config.fields import setting
from verl.config.model import DTYPES, FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig

# The builders of the engines there are; only the chosen one has to be installed.
ENGINES = {
    "hf": "verl.workers.rollout.hf_rollout:build_hf_rollout",
    "vllm": "verl.workers.rollout.vllm_rollout.engine:build_vllm_rollout",
}

# Nats by which two right implementations may differ on a token: sums in another order, rounded.
# Seen between kernels on a model of 30 layers: 0.00002, 0.03 and 0.34.
TOLERANCES = {"float32": 0.01, "float16": 0.1, "bfloat16": 1.0}


@dataclass
class PolicyLossConfig:
    loss_mode: str = setting("vanilla", "the policy loss", choices=POLICY_LOSSES, open=True)


@dataclass
class ActorConfig:
    """The policy update."""

    ppo_mini_batch_size: int = setting(256, "rows an optimiser step", least=1)
    ppo_micro_batch_size_per_gpu: int | None = setting(
        None, "rows a forward pass; None: the whole share of the rank", least=1, harmless=True
    )
    use_dynamic_bsz: bool = setting(False, "cut micro-batches by tokens", harmless=True)
    ppo_max_token_len_per_gpu: int = setting(
        16384, "use_dynamic_bsz: tokens a micro-batch", least=1, harmless=True
    )
    ppo_epochs: int = setting(1, "passes over a rollout", least=1)
    shuffle: bool = setting(
        True, "rows are shuffled (by the run's seed) before they are cut into mini-batches"
    )
    clip_ratio: float = setting(
        0.2, "the policy ratio is clipped to 1 - clip_ratio .. 1 + clip_ratio", least=0
    )
    clip_ratio_low: float | None = setting(None, "default: clip_ratio", least=0)
    clip_ratio_high: float | None = setting(None, "default: clip_ratio", least=0)
    clip_ratio_c: float = setting(3.0, "dual clip, for negative advantages", above=1)
    loss_agg_mode: str | None = setting(
        None,
        "how the losses of tokens become one number (`agg_loss`); default: the one that the policy "
        "loss is defined for, else token-mean",
        choices=LOSS_AGG_MODES,
    )
    loss_scale_factor: int | None = setting(
        None, "seq-mean-token-sum-norm: divides by this; default: the response length", least=1
    )
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    entropy_coeff: float = setting(
        0.0, "a plain entropy bonus; must be 0 with EPO, which has its own"
    )
    use_kl_loss: bool = setting(False, "add the KL to the reference policy to the loss")
    kl_loss_coef: float = setting(0.001, "weight of that KL", least=0)
    kl_loss_type: str = setting(
        "low_var_kl",
        "estimator of that KL: kl is k1, mse is k2, low_var_kl is k3; with + the gradient of k2; "
        "full: of whole distributions",
        choices=(*KL_NAMES, "full"),
    )
    use_invalid_action_penalty: bool = setting(True, "punish turns whose action cannot be read")
    invalid_action_penalty_coef: float = setting(
        0.1, "subtracted at the last token of an invalid turn", least=0
    )
    optim: OptimConfig = field(default_factory=OptimConfig)
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class RefConfig:
    """The frozen reference policy, built only when a KL term needs it."""

    log_prob_micro_batch_size_per_gpu: int | None = setting(
        None, "rows a forward pass", least=1, harmless=True
    )
    log_prob_use_dynamic_bsz: bool = setting(False, "cut by tokens", harmless=True)
    log_prob_max_token_len_per_gpu: int = setting(
        16384, "tokens a forward pass, when cut by tokens", least=1, harmless=True
    )
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class SamplingConfig:
    """How responses are drawn in validation."""

    temperature: float = setting(1.0, "of the softmax; 0 is greedy", least=0, harmless=True)
    top_p: float = setting(1.0, "nucleus sampling; 1: off", above=0, most=1, harmless=True)
    top_k: int = setting(
        -1, "sample among the k likeliest tokens; -1: off", least=-1, harmless=True
    )
    do_sample: bool = setting(True, "false: greedy", harmless=True)


@dataclass
class LiveCheckConfig:
    """After each weight sync engines and trainer compute the log-probs of a few fixed rows."""

    enable: bool = setting(
        True,
        "after each weight sync engines and trainer score the same rows; if they differ, the run "
        "stops",
        harmless=True,
    )
    tolerance: float | None = setting(
        None,
        "the largest difference of a log-prob, in nats; default: by the coarser dtype of engine "
        f"and trainer, {', '.join(f'{nats} in {name}' for name, nats in TOLERANCES.items())}",
        above=0,
        harmless=True,
    )


@dataclass
class RolloutConfig:
    """The inference engine and the rollout workers."""

    name: str = setting(
        "auto",
        "hf: transformers with a KV cache that lasts a trajectory; auto: vllm where installed",
        choices=("auto", *ENGINES),
        open=True,
    )
    mode: str = setting(
        "colocated",
        "colocated: engines share the trainers' GPUs; disaggregated: they have GPUs of their own",
        choices=("colocated", "disaggregated"),
        harmless=True,
    )
    workers: int | None = setting(
        None,
        "rollout workers (engine replicas) on the cluster; default: as many as the places for them",
        least=1,
        harmless=True,
    )
    tensor_model_parallel_size: int = setting(
        1, "vllm: GPUs (on a CPU: processes) of one replica", least=1, harmless=True
    )
    temperature: float = setting(
        1.0, "of sampling in training; losses use the same softmax", least=1e-6
    )
    top_p: float = setting(1.0, "nucleus sampling; 1: off", above=0, most=1)
    top_k: int = setting(-1, "sample among the k likeliest tokens; -1: off", least=-1)
    max_num_seqs: int = setting(64, "requests that are decoded together", least=1, harmless=True)
    max_num_batched_tokens: int | None = setting(
        None, "vllm: tokens of one engine step; default: vllm's", least=1, harmless=True
    )
    max_model_len: int | None = setting(
        None, "default: max_prompt_length + max_response_length", least=1, harmless=True
    )
    dtype: str = setting("auto", "auto: bfloat16 on cuda, float32 on cpu", choices=DTYPES)
    gpu_memory_utilization: float = setting(
        0.5, "vllm on cuda: share of the GPU's memory for an engine", above=0, most=1, harmless=True
    )
    cpu_kv_cache_gb: float = setting(
        1.0, "vllm on cpu: gigabytes (2**30) of KV cache of an engine", above=0, harmless=True
    )
    enforce_eager: bool | None = setting(
        None,
        "vllm: no compilation and no CUDA graphs; default: true on cpu, where compiling takes "
        "minutes",
        harmless=True,
    )
    enable_chunked_prefill: bool = setting(
        True, "vllm: long prompts are prefilled beside decoding", harmless=True
    )
    enable_prefix_caching: bool = setting(
        True,
        "vllm: a trajectory's next prompt costs its new tokens only; on a CPU not for models whose "
        "layers keep states",
        harmless=True,
    )
    free_cache_engine: bool = setting(
        True, "vllm, colocated on cuda: sleep while the trainer trains", harmless=True
    )
    weight_sync: str = setting(
        "auto",
        "how weights reach the engines: through host memory (object_store), from GPU to GPU (nccl) "
        "or on one GPU (ipc); auto: on cuda ipc when colocated, else nccl; on cpu and for hf "
        "object_store",
        choices=("auto", "object_store", "nccl", "ipc"),
        harmless=True,
    )
    check_weights: bool = setting(
        False, "compare a checksum of the weights after each sync", harmless=True
    )
    live_check: LiveCheckConfig = field(default_factory=LiveCheckConfig)
    request_timeout_s: float = setting(
        600.0,
        "seconds a request may take; then it is cancelled and its episode ends as truncated",
        above=0,
        harmless=True,
    )
    log_prob_micro_batch_size_per_gpu: int | None = setting(
        None, "old log-probs: rows a forward pass", least=1, harmless=True
    )
    log_prob_use_dynamic_bsz: bool = setting(False, "old log-probs: cut by tokens", harmless=True)
    log_prob_max_token_len_per_gpu: int = setting(
        16384, "tokens a forward pass, when cut by tokens", least=1, harmless=True
    )
    val_kwargs: SamplingConfig = field(default_factory=SamplingConfig)
    agent_world: str = setting(
        "agent_system",
        "the agent's side of the trainer",
        choices=("agent_system",),
        open=True,
    )


@dataclass
class ActorRolloutRefConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    ref: RefConfig = field(default_factory=RefConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
