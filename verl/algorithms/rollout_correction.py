"""How far rollout engine and trainer disagree on the sampled tokens, and weights that correct it.

Shapes: B rows, T response tokens, N active tokens, J trajectories. A token's ratio is
exp(old_log_prob - rollout_log_prob): the probability that the trainer's weights give it before the
update, over the one it was sampled with. It is not 1 where the engine computes differently (other
kernels, another precision) or sampled with older weights. PPO's own ratio is separate: it compares
the weights during the update with those before it (decoupled PPO, Hilton et al. 2021,
arXiv:2110.00641).

Sources: truncated importance sampling, Espeholt et al. 2018 (IMPALA, arXiv:1802.01561), and for
engines that differ from trainers Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
Off-Policy RL Training"; masking tokens instead, IcePop (Ring-1T, 2025); k1, k3: Schulman 2020,
"Approximating KL Divergence".
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# A ratio beyond exp(20) = 5e8 is a broken pair of log-probs. Without the bound it would overflow
# the squares and exponentials below, and one sampled token of probability 0 would make them nan.
MAX_LOG_RATIO = 20.0


class Correction(NamedTuple):
    """`weight_BT`: (B, T) float32, not negative; it means nothing off the mask. `clipped_share`:
    of the active tokens (sequence_tis: of the trajectories) that were capped or masked."""

    weight_BT: Tensor
    clipped_share: float


def token_log_ratio(
    old_log_probs_BT: Tensor, rollout_log_probs_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """old - rollout in float64, within +-MAX_LOG_RATIO; 0 off the mask."""
    log_ratio_BT = old_log_probs_BT.double() - rollout_log_probs_BT.double()
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).masked_fill(~mask_BT.bool(), 0.0)


def correction(
    mode: str,
    log_ratio_BT: Tensor,
    mask_BT: Tensor,
    trajectory_B: Tensor,
    *,
    lowest: float,
    highest: float,
) -> Correction:
    """The weights of `algorithm.rollout_correction`, one of its modes other than none.

    Args:
        log_ratio_BT: `token_log_ratio`. trajectory_B: rows of one trajectory share a number.
        highest: cap of the ratio, or the largest ratio kept. lowest: the smallest kept.
    """
    if mode == "token_tis":
        return token_tis(log_ratio_BT, mask_BT, highest)
    if mode == "sequence_tis":
        return sequence_tis(log_ratio_BT, mask_BT, trajectory_B, highest)
    return token_mask(log_ratio_BT, mask_BT, lowest, highest)


def token_tis(log_ratio_BT: Tensor, mask_BT: Tensor, highest: float) -> Correction:
    """min(ratio, highest) of each token."""
    ratio_BT = log_ratio_BT.exp()
    capped_N = ratio_BT[mask_BT.bool()] > highest
    return Correction(ratio_BT.clamp(max=highest).float(), _share(capped_N))


def sequence_tis(
    log_ratio_BT: Tensor, mask_BT: Tensor, trajectory_B: Tensor, highest: float
) -> Correction:
    """min(prod ratio, highest), the product over all tokens of the trajectory, in all its rows."""
    sum_B = (log_ratio_BT * mask_BT).sum(dim=-1)
    sum_J = sum_B.new_zeros(int(trajectory_B.max()) + 1).index_add_(0, trajectory_B, sum_B)
    ratio_J = sum_J.clamp(max=MAX_LOG_RATIO).exp()  # a long trajectory's sum can overflow exp
    weight_B1 = ratio_J.clamp(max=highest).float()[trajectory_B].unsqueeze(-1)
    return Correction(weight_B1.expand(mask_BT.shape).contiguous(), _share(ratio_J > highest))


def token_mask(log_ratio_BT: Tensor, mask_BT: Tensor, lowest: float, highest: float) -> Correction:
    """1 where the ratio is in [lowest, highest], else 0: such a token teaches nothing."""
    ratio_BT = log_ratio_BT.exp()
    kept_BT = (ratio_BT >= lowest) & (ratio_BT <= highest)
    return Correction(kept_BT.float(), _share(~kept_BT[mask_BT.bool()]))


# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "training/rollout_probs_diff_mean",
        "probability",
        "mean",
        "|p of the engine - p of the trainer| of a sampled token",
    ),
    ("training/rollout_probs_diff_max", "probability", "max", "the same"),
    ("training/rollout_probs_diff_std", "probability", "-", "its standard deviation over tokens"),
    ("training/rollout_kl_k1", "nats", "mean", "KL(engine || trainer), estimator k1"),
    ("training/rollout_kl_k3", "nats", "mean", "the same, estimator k3"),
    (
        "training/rollout_ess",
        "share",
        "-",
        "effective sample size over tokens; 1: engine and trainer agree",
    ),
)


def mismatch_metrics(
    old_log_probs_BT: Tensor, rollout_log_probs_BT: Tensor, mask_BT: Tensor
) -> dict[str, float]:
    """`training/rollout_*`, over the active tokens, of which there must be one.

    - probs_diff: |p_rollout - p_old|, probabilities from 0 to 1; its mean, max and (population) std
    - kl_k1 = mean(-log r) and kl_k3 = mean(r - 1 - log r), r the ratio: estimates of
      KL(rollout || old) in nats; k3 is never negative and varies less
    - ess = (sum r)^2 / (N sum r^2), in (0, 1]: the share of tokens that would be worth as much,
      had the trainer's own weights sampled them
    """
    active_BT = mask_BT.bool()
    sampled_N = rollout_log_probs_BT[active_BT].double().exp()
    diff_N = (sampled_N - old_log_probs_BT[active_BT].double().exp()).abs()
    log_ratio_N = token_log_ratio(old_log_probs_BT, rollout_log_probs_BT, mask_BT)[active_BT]
    ratio_N = log_ratio_N.exp()
    metrics = {
        "probs_diff_mean": diff_N.mean(),
        "probs_diff_max": diff_N.max(),
        "probs_diff_std": diff_N.std(correction=0),
        "kl_k1": -log_ratio_N.mean(),
        "kl_k3": (log_ratio_N.expm1() - log_ratio_N).mean(),
        "ess": ratio_N.mean().square() / ratio_N.square().mean(),
    }
    return {f"training/rollout_{name}": float(value) for name, value in metrics.items()}


def _share(chosen: Tensor) -> float:
    return float(chosen.float().mean())
