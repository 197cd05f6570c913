"""`critic.*`: the value function of PPO."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.algorithms.aggregation import LOSS_AGG_MODES
from verl.config.fields import setting
from verl.config.model import LOAD_METHODS, FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig


@dataclass
class CriticModelConfig(ModelConfig):
    path: str = setting("${actor_rollout_ref.model.path}", "default: the policy's")
    load_method: str = setting(
        "${actor_rollout_ref.model.load_method}",
        "default: the policy's",
        choices=LOAD_METHODS,
        harmless=True,
    )
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)


@dataclass
class CriticConfig:
    """Built only when the advantage estimator is `gae`."""

    model: CriticModelConfig = field(default_factory=CriticModelConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    ppo_mini_batch_size: int = setting(256, "rows an optimiser step", least=1)
    ppo_micro_batch_size_per_gpu: int | None = setting(
        None, "rows a forward pass; null: the whole share of the rank", least=1, harmless=True
    )
    use_dynamic_bsz: bool = setting(False, "cut micro-batches by tokens", harmless=True)
    ppo_max_token_len_per_gpu: int = setting(
        32768, "use_dynamic_bsz: tokens a micro-batch", least=1, harmless=True
    )
    ppo_epochs: int = setting(1, "passes over a rollout", least=1)
    shuffle: bool = setting(True, "rows are shuffled before they are cut into mini-batches")
    cliprange_value: float = setting(
        0.5, "a new value moves at most so far from the old one", least=0
    )
    loss_agg_mode: str = setting("token-mean", "as the actor's", choices=LOSS_AGG_MODES)
    loss_scale_factor: int | None = setting(
        None, "seq-mean-token-sum-norm: divides by this; default: the response length", least=1
    )
