"""`critic.*`: the value function of PPO."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.model import FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig


@dataclass
class CriticModelConfig(ModelConfig):
    path: str = "${actor_rollout_ref.model.path}"  # default: the policy's
    load_method: str = "${actor_rollout_ref.model.load_method}"  # default: the policy's
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class CriticConfig:
    """Built only when the advantage estimator is `gae`."""

    model: CriticModelConfig = field(default_factory=CriticModelConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    ppo_mini_batch_size: int = 256  # rows an optimiser step
    # rows a forward pass; null: the whole share of the rank
    ppo_micro_batch_size_per_gpu: int | None = None
    use_dynamic_bsz: bool = False  # cut micro-batches by tokens
    ppo_max_token_len_per_gpu: int = 32768  # use_dynamic_bsz: tokens a micro-batch
    ppo_epochs: int = 1  # passes over a rollout
    shuffle: bool = True  # rows are shuffled before they are cut into mini-batches
    cliprange_value: float = 0.5  # a new value moves at most so far from the old one
    loss_agg_mode: str = "token-mean"  # as the actor's
    # seq-mean-token-sum-norm: divides by this; default: the response length
    loss_scale_factor: int | None = None
