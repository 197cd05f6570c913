"""The algorithms by the names that users of verl know: a face of `verl.algorithms`."""

from collections.abc import Callable
from enum import Enum, StrEnum

from verl.algorithms.advantages import (
    compute_gdpo_outcome_advantage,
    compute_reinforce_plus_plus_baseline_outcome_advantage,
    compute_reinforce_plus_plus_outcome_advantage,
    compute_remax_outcome_advantage,
)
from verl.algorithms.aggregation import agg_loss
from verl.algorithms.estimators import ESTIMATORS, Estimator, estimator
from verl.algorithms.gae import compute_gae_advantage_return
from verl.algorithms.kl import (
    AdaptiveKLController,
    FixedKLController,
    get_kl_controller,
    kl_penalty,
)
from verl.algorithms.policy_losses import (
    POLICY_LOSSES,
    PolicyLoss,
    compute_policy_loss,
    compute_value_loss,
    register_policy_loss,
)

__all__ = [
    "AdaptiveKLController",
    "AdvantageEstimator",
    "FixedKLController",
    "agg_loss",
    "compute_gae_advantage_return",
    "compute_gdpo_outcome_advantage",
    "compute_gpg_outcome_advantage",
    "compute_grpo_outcome_advantage",
    "compute_grpo_passk_outcome_advantage",
    "compute_opo_outcome_advantage",
    "compute_policy_loss",
    "compute_policy_loss_cispo",
    "compute_policy_loss_geo_mean",
    "compute_policy_loss_gpg",
    "compute_policy_loss_gspo",
    "compute_policy_loss_vanilla",
    "compute_reinforce_plus_plus_baseline_outcome_advantage",
    "compute_reinforce_plus_plus_outcome_advantage",
    "compute_remax_outcome_advantage",
    "compute_rloo_outcome_advantage",
    "compute_value_loss",
    "get_adv_estimator_fn",
    "get_kl_controller",
    "get_policy_loss_fn",
    "kl_penalty",
    "register_adv_est",
    "register_policy_loss",
]

AdvantageEstimator = StrEnum("AdvantageEstimator", {name.upper(): name for name in ESTIMATORS})

compute_grpo_outcome_advantage = ESTIMATORS["grpo"]
compute_rloo_outcome_advantage = ESTIMATORS["rloo"]
compute_opo_outcome_advantage = ESTIMATORS["opo"]
compute_gpg_outcome_advantage = ESTIMATORS["gpg"]
compute_grpo_passk_outcome_advantage = ESTIMATORS["grpo_passk"]

compute_policy_loss_vanilla = POLICY_LOSSES["vanilla"]
compute_policy_loss_gspo = POLICY_LOSSES["gspo"]
compute_policy_loss_geo_mean = POLICY_LOSSES["geo_mean"]
compute_policy_loss_cispo = POLICY_LOSSES["cispo"]
compute_policy_loss_gpg = POLICY_LOSSES["gpg"]


def register_adv_est(name_or_enum: str | Enum) -> Callable[[Callable], Callable]:
    """Decorator: `estimator` with one name, which may be an enum's."""
    return estimator(_name(name_or_enum))


def get_adv_estimator_fn(name_or_enum: str | Enum) -> Estimator:
    """The estimator registered under a name. Raises ValueError when there is none."""
    return _get(ESTIMATORS, "Unknown advantage estimator simply", _name(name_or_enum))


def get_policy_loss_fn(name: str) -> PolicyLoss:
    """The policy loss registered under a name. Raises ValueError when there is none."""
    return _get(POLICY_LOSSES, "Unsupported loss mode", name)


def _name(name_or_enum: str | Enum) -> str:
    return name_or_enum.value if isinstance(name_or_enum, Enum) else name_or_enum


def _get(registry: dict[str, Callable], complaint: str, name: str) -> Callable:
    if name not in registry:
        raise ValueError(f"{complaint}: {name}; available: {', '.join(sorted(registry))}")
    return registry[name]
