"""`algorithm.*` and `data.*`: the estimator, KL control and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from verl.algorithms.advantages import find_estimator
from verl.algorithms.estimators import needed_inputs


@dataclass
class KLControlConfig:
    type: str = "fixed"  # fixed | adaptive
    kl_coef: float = 0.001  # weight of the KL in the reward, at the start when adaptive
    horizon: int = 10000  # adaptive: steps over which the coefficient reacts
    target_kl: float = 0.1  # adaptive: the KL aimed at


@dataclass
class EntropyControlConfig:
    """What takes the place of the entropy bonus (docs/extending.md)."""

    # epo | import path of an EntropyControl; null: EPO where epo.enable is true, else none
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of a control of your own; EPO: epo.*


@dataclass
class AlgorithmConfig:
    # gae | grpo | rloo | opo | gpg | grpo_passk | reinforce_plus_plus |
    # reinforce_plus_plus_baseline, or the import path of your own, package.module:function
    adv_estimator: str = "grpo"
    gamma: float = 1.0  # discount of rewards
    lam: float = 1.0  # GAE's lambda
    # divide by the group's standard deviation (Dr. GRPO does not)
    norm_adv_by_std_in_grpo: bool = True
    use_kl_in_reward: bool = False  # subtract the KL to the reference policy from the reward
    kl_penalty: str = "kl"  # estimator of that KL: kl (k1) | abs | mse (k2) | low_var_kl (k3)
    kl_ctrl: KLControlConfig = field(default_factory=KLControlConfig)
    entropy_control: EntropyControlConfig = field(default_factory=EntropyControlConfig)
    # weights for tokens that the engine sampled from other probabilities than the trainer's:
    # none | token_tis | sequence_tis (truncated importance sampling) | token_mask
    rollout_correction: str = "none"
    rollout_correction_max: float = 2.0  # tis: cap of the ratio; mask: the largest ratio kept
    rollout_correction_min: float = 0.5  # mask: the smallest ratio kept
    # leave groups that all earned the same out of the update, of the EPO and KL terms too
    drop_zero_advantage_groups: bool = False

    @property
    def needs_critic(self) -> bool:
        """Whether the estimator reads values."""
        return "values" in needed_inputs(find_estimator(self.adv_estimator))


@dataclass
class DataConfig:
    train_batch_size: int = 16  # tasks a step; episodes = train_batch_size * env.rollout.n
    val_batch_size: int | None = None  # validation episodes handed out at a time; default: all
    # tokens of a prompt (trajectory context: of the conversation); beyond, oldest turns are dropped
    max_prompt_length: int = 2048
    max_response_length: int = 512  # tokens of one response
