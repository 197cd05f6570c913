"""The public names of the algorithms, and the two registries that the config chooses from.

The maths is in `gae.py`, `group_advantages.py`, `policy_losses.py`, `kl.py` and
`aggregation.py`. To add an estimator or a loss, decorate a function with `register_adv_est` or
`register_policy_loss`.
"""

from collections.abc import Callable
from enum import Enum, StrEnum
from typing import Any

from verl.algorithms.advantages import (
    compute_gdpo_outcome_advantage,
    compute_gpg_outcome_advantage,
    compute_grpo_outcome_advantage,
    compute_grpo_passk_outcome_advantage,
    compute_opo_outcome_advantage,
    compute_reinforce_plus_plus_baseline_outcome_advantage,
    compute_reinforce_plus_plus_outcome_advantage,
    compute_remax_outcome_advantage,
    compute_rloo_outcome_advantage,
)
from verl.algorithms.aggregation import agg_loss, loss_normalizers, trajectory_token_weights
from verl.algorithms.gae import compute_gae_across_turns, compute_gae_advantage_return
from verl.algorithms.kl import (
    AdaptiveKLController,
    FixedKLController,
    compute_rewards,
    full_kl,
    get_kl_controller,
    kl_in_reward,
    kl_penalty,
    kl_penalty_forward,
)
from verl.algorithms.policy_losses import (
    compute_policy_loss,
    compute_policy_loss_cispo,
    compute_policy_loss_geo_mean,
    compute_policy_loss_gpg,
    compute_policy_loss_gspo,
    compute_policy_loss_vanilla,
    compute_value_loss,
)

__all__ = [
    "ADV_ESTIMATOR_REGISTRY",
    "POLICY_LOSS_REGISTRY",
    "AdaptiveKLController",
    "AdvantageEstimator",
    "FixedKLController",
    "agg_loss",
    "compute_gae_across_turns",
    "compute_gae_advantage_return",
    "compute_gdpo_outcome_advantage",
    "compute_gpg_outcome_advantage",
    "compute_grpo_outcome_advantage",
    "compute_grpo_passk_outcome_advantage",
    "compute_grpo_vectorized_outcome_advantage",
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
    "compute_rewards",
    "compute_rloo_outcome_advantage",
    "compute_rloo_vectorized_outcome_advantage",
    "compute_value_loss",
    "full_kl",
    "get_adv_estimator_fn",
    "get_kl_controller",
    "get_policy_loss_fn",
    "kl_in_reward",
    "kl_penalty",
    "kl_penalty_forward",
    "loss_normalizers",
    "register_adv_est",
    "register_policy_loss",
    "trajectory_token_weights",
]

# verl has a looped and a vectorised form of these two; here there is one, and it is vectorised
compute_grpo_vectorized_outcome_advantage = compute_grpo_outcome_advantage
compute_rloo_vectorized_outcome_advantage = compute_rloo_outcome_advantage


class AdvantageEstimator(StrEnum):
    """The built-in estimators, the values of `algorithm.adv_estimator`."""

    GAE = "gae"
    GRPO = "grpo"
    GRPO_VECTORIZED = "grpo_vectorized"
    GRPO_PASSK = "grpo_passk"
    RLOO = "rloo"
    RLOO_VECTORIZED = "rloo_vectorized"
    REINFORCE_PLUS_PLUS = "reinforce_plus_plus"
    REINFORCE_PLUS_PLUS_BASELINE = "reinforce_plus_plus_baseline"
    REMAX = "remax"
    OPO = "opo"
    GPG = "gpg"
    GDPO = "gdpo"


# Plain dicts, not `verl.registry.Registry`: code written for verl reads, extends and replaces them.
ADV_ESTIMATOR_REGISTRY: dict[str, Callable[..., Any]] = {
    AdvantageEstimator.GAE.value: compute_gae_advantage_return,
    AdvantageEstimator.GRPO.value: compute_grpo_outcome_advantage,
    AdvantageEstimator.GRPO_VECTORIZED.value: compute_grpo_vectorized_outcome_advantage,
    AdvantageEstimator.GRPO_PASSK.value: compute_grpo_passk_outcome_advantage,
    AdvantageEstimator.RLOO.value: compute_rloo_outcome_advantage,
    AdvantageEstimator.RLOO_VECTORIZED.value: compute_rloo_vectorized_outcome_advantage,
    AdvantageEstimator.REINFORCE_PLUS_PLUS.value: compute_reinforce_plus_plus_outcome_advantage,
    AdvantageEstimator.REINFORCE_PLUS_PLUS_BASELINE.value: (
        compute_reinforce_plus_plus_baseline_outcome_advantage
    ),
    AdvantageEstimator.REMAX.value: compute_remax_outcome_advantage,
    AdvantageEstimator.OPO.value: compute_opo_outcome_advantage,
    AdvantageEstimator.GPG.value: compute_gpg_outcome_advantage,
    AdvantageEstimator.GDPO.value: compute_gdpo_outcome_advantage,
}
POLICY_LOSS_REGISTRY: dict[str, Callable[..., Any]] = {
    "vanilla": compute_policy_loss_vanilla,
    "gspo": compute_policy_loss_gspo,
    "geo_mean": compute_policy_loss_geo_mean,
    "cispo": compute_policy_loss_cispo,
    "gpg": compute_policy_loss_gpg,
}


def register_adv_est(name_or_enum: str | Enum) -> Callable[[Callable], Callable]:
    """Decorator: make an advantage estimator available under a name.

    It is called with keyword arguments (`token_level_rewards`, `response_mask`, `index`,
    `traj_index`, `values`, `gamma`, `lam`, `config`, ...) and returns (advantages, returns), both
    (B, T).

    Raises:
        ValueError: the name belongs to another function.
    """
    return _adder(ADV_ESTIMATOR_REGISTRY, "advantage estimator", _name(name_or_enum))


def get_adv_estimator_fn(name_or_enum: str | Enum) -> Callable[..., Any]:
    """The estimator registered under a name.

    Raises:
        ValueError: there is none; the message lists the names there are.
    """
    name = _name(name_or_enum)
    if name not in ADV_ESTIMATOR_REGISTRY:
        names = ", ".join(sorted(ADV_ESTIMATOR_REGISTRY))
        raise ValueError(f"Unknown advantage estimator simply: {name}; available: {names}")
    return ADV_ESTIMATOR_REGISTRY[name]


def register_policy_loss(name: str) -> Callable[[Callable], Callable]:
    """Decorator: make a policy loss, with the signature of `vanilla`, available under a name.

    Raises:
        ValueError: the name belongs to another function.
    """
    return _adder(POLICY_LOSS_REGISTRY, "policy loss", name)


def get_policy_loss_fn(name: str) -> Callable[..., Any]:
    """The policy loss registered under a name.

    Raises:
        ValueError: there is none; the message lists the names there are.
    """
    if name not in POLICY_LOSS_REGISTRY:
        names = ", ".join(sorted(POLICY_LOSS_REGISTRY))
        raise ValueError(f"Unsupported loss mode: {name}; available: {names}")
    return POLICY_LOSS_REGISTRY[name]


def _name(name_or_enum: str | Enum) -> str:
    return name_or_enum.value if isinstance(name_or_enum, Enum) else name_or_enum


def _adder(registry: dict[str, Callable], kind: str, name: str) -> Callable[[Callable], Callable]:
    def add(fn: Callable) -> Callable:
        if registry.setdefault(name, fn) is not fn:
            raise ValueError(
                f"{kind} '{name}' is already registered as {registry[name]!r}; choose another name"
            )
        return fn

    return add
