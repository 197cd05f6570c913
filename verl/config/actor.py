"""`actor_rollout_ref.*`: the policy, its reference and the engine that samples from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.model import FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig


@dataclass
class PolicyLossConfig:
    # vanilla | gspo | geo_mean | cispo | gpg, or the import path of your own,
    # package.module:function
    loss_mode: str = "vanilla"


@dataclass
class ActorConfig:
    """The policy update."""

    ppo_mini_batch_size: int = 256  # rows an optimiser step
    # rows a forward pass; None: the whole share of the rank
    ppo_micro_batch_size_per_gpu: int | None = None
    use_dynamic_bsz: bool = False  # cut micro-batches by tokens
    ppo_max_token_len_per_gpu: int = 16384  # use_dynamic_bsz: tokens a micro-batch
    ppo_epochs: int = 1  # passes over a rollout
    # rows are shuffled (by the run's seed) before they are cut into mini-batches
    shuffle: bool = True
    clip_ratio: float = 0.2  # the policy ratio is clipped to 1 - clip_ratio .. 1 + clip_ratio
    clip_ratio_low: float | None = None  # default: clip_ratio
    clip_ratio_high: float | None = None  # default: clip_ratio
    clip_ratio_c: float = 3.0  # dual clip, for negative advantages
    # token-mean | seq-mean-token-sum | seq-mean-token-mean | seq-mean-token-sum-norm; default: the
    # one that the policy loss is defined for, else token-mean
    loss_agg_mode: str | None = None
    # seq-mean-token-sum-norm: divides by this; default: the response length
    loss_scale_factor: int | None = None
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    entropy_coeff: float = 0.0  # a plain entropy bonus; must be 0 with EPO, which has its own
    use_kl_loss: bool = False  # add the KL to the reference policy to the loss
    kl_loss_coef: float = 0.001  # weight of that KL
    kl_loss_type: str = "low_var_kl"  # k1 | abs | k2 | low_var_kl (k3) | full
    use_invalid_action_penalty: bool = True  # punish turns whose action cannot be read
    invalid_action_penalty_coef: float = 0.1  # subtracted at the last token of an invalid turn
    optim: OptimConfig = field(default_factory=OptimConfig)
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class RefConfig:
    """The frozen reference policy, built only when a KL term needs it."""

    log_prob_micro_batch_size_per_gpu: int | None = None  # rows a forward pass
    log_prob_use_dynamic_bsz: bool = False  # cut by tokens
    log_prob_max_token_len_per_gpu: int = 16384  # tokens a forward pass, when cut by tokens
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class SamplingConfig:
    """How responses are drawn in validation."""

    temperature: float = 1.0  # of the softmax; 0 is greedy
    top_p: float = 1.0  # nucleus sampling; 1: off
    top_k: int = -1  # sample among the k likeliest tokens; -1: off
    do_sample: bool = True  # false: greedy


@dataclass
class RolloutConfig:
    """The inference engine and the rollout workers."""

    # vllm; hf: transformers with a KV cache that lasts a trajectory; auto: vllm where installed; or
    # the import path of your own, package.module:function
    name: str = "auto"
    # colocated: engines share the trainers' GPUs; disaggregated: they have GPUs of their own
    mode: str = "colocated"
    # rollout workers (engine replicas) on the cluster; default: as many as the places for them
    workers: int | None = None
    tensor_model_parallel_size: int = 1  # vllm: GPUs (on a CPU: processes) of one replica
    temperature: float = 1.0  # of sampling in training; losses use the same softmax
    top_p: float = 1.0  # nucleus sampling; 1: off
    top_k: int = -1  # sample among the k likeliest tokens; -1: off
    max_num_seqs: int = 64  # requests that are decoded together
    max_num_batched_tokens: int | None = None  # vllm: tokens of one engine step; default: vllm's
    max_model_len: int | None = None  # default: max_prompt_length + max_response_length
    dtype: str = "auto"  # auto: bfloat16 on cuda, float32 on cpu
    gpu_memory_utilization: float = 0.5  # vllm on cuda: share of the GPU's memory for an engine
    cpu_kv_cache_gb: float = 1.0  # vllm on cpu: gigabytes (2**30) of KV cache of an engine
    # vllm: no compilation and no CUDA graphs; default: true on cpu, where compiling takes minutes
    enforce_eager: bool | None = None
    enable_chunked_prefill: bool = True  # vllm: long prompts are prefilled beside decoding
    enable_prefix_caching: bool = True  # vllm: a trajectory's next prompt costs its new tokens only
    free_cache_engine: bool = True  # vllm, colocated on cuda: sleep while the trainer trains
    # how weights reach the engines: object_store (through host memory) | nccl | ipc (one GPU);
    # auto: on cuda ipc when colocated, else nccl; on cpu and for hf object_store
    weight_sync: str = "auto"
    check_weights: bool = False  # compare a checksum of the weights after each sync
    # seconds a request may take; then it is cancelled and its episode ends as truncated
    request_timeout_s: float = 600.0
    log_prob_micro_batch_size_per_gpu: int | None = None  # old log-probs: rows a forward pass
    log_prob_use_dynamic_bsz: bool = False  # old log-probs: cut by tokens
    log_prob_max_token_len_per_gpu: int = 16384  # tokens a forward pass, when cut by tokens
    val_kwargs: SamplingConfig = field(default_factory=SamplingConfig)
    agent_world: str = "agent_system"  # agent_system | import path of an AgentWorld


@dataclass
class ActorRolloutRefConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    ref: RefConfig = field(default_factory=RefConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
