"""`algorithm.*` and `data.*`: the estimator, KL control and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from verl.algorithms.advantages import find_estimator
from verl.algorithms.estimators import ESTIMATORS, needed_inputs
from verl.algorithms.kl import KL_NAMES
from verl.config.fields import setting


@dataclass
class KLControlConfig:
    type: str = setting(
        "fixed",
        "whether the coefficient stays as it is or steers the KL to target_kl",
        choices=("fixed", "adaptive"),
    )
    kl_coef: float = setting(
        0.001, "weight of the KL in the reward, at the start when adaptive", least=0
    )
    horizon: int = setting(10000, "adaptive: steps over which the coefficient reacts", least=1)
    target_kl: float = setting(0.1, "adaptive: the KL aimed at", above=0)


@dataclass
class EntropyControlConfig:
    """What takes the place of the entropy bonus (docs/extending.md)."""

    name: str | None = setting(
        None,
        "null: EPO where epo.enable is true, else none",
        choices=("epo",),
        open=True,
    )
    options: dict[str, Any] = setting({}, "of a control of your own; EPO: epo.*", open=True)


@dataclass
class AlgorithmConfig:
    adv_estimator: str = setting(
        "grpo", "how advantages are estimated", choices=ESTIMATORS, open=True
    )
    gamma: float = setting(1.0, "discount of rewards", least=0, most=1)
    lam: float = setting(1.0, "GAE's lambda", least=0, most=1)
    norm_adv_by_std_in_grpo: bool = setting(
        True, "divide by the group's standard deviation (Dr. GRPO does not)"
    )
    use_kl_in_reward: bool = setting(
        False, "subtract the KL to the reference policy from the reward"
    )
    kl_penalty: str = setting(
        "kl",
        "estimator of that KL: kl is k1, mse is k2, low_var_kl is k3; with + the gradient of k2",
        choices=KL_NAMES,
    )
    kl_ctrl: KLControlConfig = field(default_factory=KLControlConfig)
    entropy_control: EntropyControlConfig = field(default_factory=EntropyControlConfig)
    rollout_correction: str = setting(
        "none",
        "weights for tokens that the engine sampled from other probabilities than the trainer's; "
        "tis: truncated importance sampling",
        choices=("none", "token_tis", "sequence_tis", "token_mask"),
    )
    rollout_correction_max: float = setting(
        2.0, "tis: cap of the ratio; mask: the largest ratio kept", above=0
    )
    rollout_correction_min: float = setting(0.5, "mask: the smallest ratio kept", above=0)
    drop_zero_advantage_groups: bool = setting(
        False,
        "leave groups that all earned the same out of the update, of the EPO and KL terms too",
    )

    @property
    def needs_critic(self) -> bool:
        """Whether the estimator reads values."""
        return "values" in needed_inputs(find_estimator(self.adv_estimator))


@dataclass
class DataConfig:
    train_batch_size: int = setting(
        16, "tasks a step; episodes = train_batch_size * env.rollout.n", least=1
    )
    val_batch_size: int | None = setting(
        None, "validation episodes handed out at a time; default: all", least=1, harmless=True
    )
    max_prompt_length: int = setting(
        2048,
        "tokens of a prompt (trajectory context: of the conversation); beyond, oldest turns are "
        "dropped",
        least=1,
    )
    max_response_length: int = setting(512, "tokens of one response", least=1)
