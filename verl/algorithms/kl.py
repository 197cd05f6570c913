"""KL divergence from the reference policy: estimators, a penalty in the reward, controllers.

Shapes: B rows, T response tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

KL_KINDS = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
KL_NAMES = (*KL_KINDS, *(f"{kind}+" for kind in KL_KINDS))  # what `kl_penalty` takes


def kl_penalty(logprob: Tensor, ref_logprob: Tensor, kl_penalty: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) from the sampled tokens' log-probs.

    A trailing ``+`` (``k3+``) keeps the estimator's value and takes the gradient of k2, whose
    expected gradient on policy is the gradient of the KL; those of k1 and k3 are not.

    Args:
        logprob, ref_logprob: (B, T), natural logarithms.
        kl_penalty: one of `KL_KINDS`, see `kl_penalty_forward`.

    Raises:
        ValueError: unknown kind, or `full`.
    """
    value_BT = kl_penalty_forward(logprob, ref_logprob, kl_penalty.removesuffix("+"))
    if not kl_penalty.endswith("+"):
        return value_BT
    gradient_BT = kl_penalty_forward(logprob, ref_logprob, "k2")
    return value_BT.detach() + gradient_BT - gradient_BT.detach()


def kl_penalty_forward(logprob: Tensor, ref_logprob: Tensor, kl_penalty: str) -> Tensor:
    """The estimators of J. Schulman, "Approximating KL divergence" (2020), with d = logprob - ref.

    ``k1``/``kl``: d. ``abs``: |d|. ``k2``/``mse``: d^2 / 2. ``k3``/``low_var_kl``: exp(-d) + d - 1,
    with d clamped to +-20 and the result to +-10 against overflow.
    """
    log_ratio_BT = logprob - ref_logprob
    match kl_penalty:
        case "kl" | "k1":
            return log_ratio_BT
        case "abs":
            return log_ratio_BT.abs()
        case "mse" | "k2":
            return 0.5 * log_ratio_BT.square()
        case "low_var_kl" | "k3":
            log_ratio_BT = log_ratio_BT.clamp(-20.0, 20.0)
            return (torch.expm1(-log_ratio_BT) + log_ratio_BT).clamp(-10.0, 10.0)
        case "full":
            raise ValueError(
                "kl_penalty 'full' needs whole distributions, not log-probs of sampled tokens; "
                "call full_kl(logits, ref_logits)"
            )
    raise ValueError(
        f"unknown kl_penalty '{kl_penalty}'; available: {', '.join(KL_KINDS)} (each also with '+')"
    )


def full_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL(policy || reference) of each token: (B, T, V) logits -> (B, T)."""
    log_p = torch.log_softmax(logits, dim=-1)
    log_q = torch.log_softmax(ref_logits, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


class KLReward(NamedTuple):
    """`rewards_BT`: (B, T) token-level rewards. `mean_kl`: 0-d, mean over rows of token means."""

    rewards_BT: Tensor
    mean_kl: Tensor


def kl_in_reward(
    token_level_scores: Tensor,
    old_log_prob: Tensor,
    ref_log_prob: Tensor,
    response_mask: Tensor,
    coef: float,
    kind: str,
) -> KLReward:
    """Subtract `coef` times the KL estimate from the reward of every active token; all (B, T).

    `mean_kl` is what a controller's `update` takes; padding rows do not count.
    """
    mask_BT = response_mask.bool()
    kl_BT = torch.where(mask_BT, kl_penalty(old_log_prob, ref_log_prob, kind), 0.0)
    tokens_B = mask_BT.sum(dim=-1)
    kl_B = kl_BT.sum(dim=-1) / tokens_B.clamp(min=1)
    return KLReward(
        token_level_scores - coef * kl_BT, kl_B.sum() / (tokens_B > 0).sum().clamp(min=1)
    )


class KLController(ABC):
    """Holds the coefficient `value` of a KL penalty. Its state belongs in the checkpoint."""

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    @abstractmethod
    def update(self, current_kl: float, n_steps: int) -> None:
        """Take in the KL (nats a token) of one batch of `n_steps` samples."""

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class FixedKLController(KLController):
    """A coefficient that never changes."""

    def update(self, current_kl: float, n_steps: int) -> None:
        """Nothing to do."""


class AdaptiveKLController(KLController):
    """Steers the KL towards `target_kl` (Ziegler et al., arXiv:1909.08593, section 2.2).

    value <- value * (1 + clip(kl / target_kl - 1, -0.2, 0.2) * n_steps / horizon)
    """

    def __init__(self, init_kl_coef: float, target_kl: float, horizon: int) -> None:
        super().__init__(init_kl_coef)
        self.target = target_kl
        self.horizon = horizon

    def update(self, current_kl: float, n_steps: int) -> None:
        error = min(max(float(current_kl) / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * n_steps / self.horizon


def get_kl_controller(kl_ctrl: Any) -> KLController:
    """The controller that a config with `type`, `kl_coef` (and `target_kl`, `horizon`) describes.

    Raises:
        ValueError: unknown type, or an adaptive controller whose horizon or target is not positive.
    """
    if kl_ctrl.type == "fixed":
        return FixedKLController(kl_coef=kl_ctrl.kl_coef)
    if kl_ctrl.type != "adaptive":
        raise ValueError(f"unknown kl_ctrl.type '{kl_ctrl.type}'; available: adaptive, fixed")
    if kl_ctrl.horizon <= 0 or kl_ctrl.target_kl <= 0:
        raise ValueError(
            f"kl_ctrl.horizon={kl_ctrl.horizon} and kl_ctrl.target_kl={kl_ctrl.target_kl} are "
            "divisors in the adaptive controller; both must be larger than 0"
        )
    return AdaptiveKLController(kl_ctrl.kl_coef, kl_ctrl.target_kl, kl_ctrl.horizon)
