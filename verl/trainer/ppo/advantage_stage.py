"""Rewards and advantages of one rollout: from a DataProto to the pure functions and back.

R rows, T response positions. Rows of one trajectory share a `traj_uid`.
"""

from __future__ import annotations

import numpy as np
import torch

from verl.algorithms.advantages import find_estimator
from verl.algorithms.aggregation import dense_ids
from verl.algorithms.estimators import compares_episodes, needed_inputs
from verl.algorithms.kl import kl_in_reward
from verl.algorithms.rollout_correction import correction, mismatch_metrics, token_log_ratio
from verl.config.algorithm import AlgorithmConfig
from verl.config.root import PPOConfig
from verl.protocol import DataProto

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "training/invalid_action_penalty",
        "reward",
        "sum",
        "subtracted for actions that could not be read",
    ),
    (
        "actor/reward_kl_penalty",
        "nats",
        "mean",
        "KL to the reference policy that is subtracted from rewards, over tokens",
    ),
    ("actor/reward_kl_coef", "1", "-", "its coefficient (`algorithm.kl_ctrl`)"),
    (
        "training/rollout_correction_clipped",
        "share",
        "mean",
        "tokens or trajectories that the correction capped or masked",
    ),
)


def token_level_rewards(
    batch: DataProto, config: PPOConfig, kl_coef: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Scores (R, T) less the invalid-action penalty and, if asked, less the KL to the reference."""
    rewards = batch.batch["token_level_scores"]
    actor, algorithm = config.actor_rollout_ref.actor, config.algorithm
    metrics: dict[str, float] = {}
    if actor.use_invalid_action_penalty:
        penalty = actor.invalid_action_penalty_coef * batch.batch["invalid_action_mask"]
        rewards = rewards - penalty
        metrics["training/invalid_action_penalty"] = float(penalty.sum())
    if algorithm.use_kl_in_reward:
        rewards, kl = kl_in_reward(
            rewards,
            batch.batch["old_log_probs"],
            batch.batch["ref_log_prob"],
            batch.batch["response_mask"],
            kl_coef,
            algorithm.kl_penalty,
        )
        metrics |= {"actor/reward_kl_penalty": float(kl), "actor/reward_kl_coef": kl_coef}
    return rewards, metrics


def add_advantages(batch: DataProto, config: AlgorithmConfig) -> DataProto:
    """Adds `advantages` and `returns` (R, T), by the estimator `algorithm.adv_estimator`."""
    rewards = batch.batch["token_level_rewards"]
    columns = {"response_mask": batch.batch["response_mask"]}
    estimate = find_estimator(config.adv_estimator)
    if "values" in needed_inputs(estimate):
        columns["values"] = batch.batch["values"]
    else:
        rewards = with_episode_outcome(batch)
    advantages, returns = estimate(
        token_level_rewards=rewards,
        **columns,
        index=batch.non_tensor_batch["uid"],
        traj_index=batch.non_tensor_batch["traj_uid"],
        turn_index=batch.non_tensor_batch["turn"],
        gamma=config.gamma,
        lam=config.lam,
        norm_adv_by_std_in_grpo=config.norm_adv_by_std_in_grpo,
        config=config,
    )
    batch.batch["advantages"] = advantages * has_company(batch, config)[:, None]
    batch.batch["returns"] = returns
    return batch


def compare_with_rollout(batch: DataProto, config: AlgorithmConfig) -> dict[str, float]:
    """How far the engines' log-probs are from the trainer's, as `training/rollout_*` metrics.

    With `algorithm.rollout_correction` the batch gets the column `rollout_is_weights` (R, T).
    """
    mask = batch.batch["response_mask"]
    old, sampled = batch.batch["old_log_probs"], batch.batch["rollout_log_probs"]
    metrics = mismatch_metrics(old, sampled, mask)
    if config.rollout_correction != "none":
        weights, metrics["training/rollout_correction_clipped"] = correction(
            config.rollout_correction,
            token_log_ratio(old, sampled, mask),
            mask,
            dense_ids(batch.non_tensor_batch["traj_uid"]),
            lowest=config.rollout_correction_min,
            highest=config.rollout_correction_max,
        )
        batch.batch["rollout_is_weights"] = weights
    return metrics


def with_episode_outcome(batch: DataProto) -> torch.Tensor:
    """Rewards (R, T) in which every row also earns what the other turns of its episode scored.

    Outcome estimators look at one row at a time. A row that holds a whole trajectory is unchanged;
    a row that holds one turn keeps its own penalties.
    """
    # Double precision: episodes that earned the same must compare as equal after the additions.
    rewards = batch.batch["token_level_rewards"].double()
    scores_B = batch.batch["token_level_scores"].double().sum(dim=-1)
    trajectory_B = dense_ids(batch.non_tensor_batch["traj_uid"])
    episode_B = torch.zeros_like(scores_B).index_add_(0, trajectory_B, scores_B)[trajectory_B]
    last_B = last_active(batch.batch["response_mask"])
    rewards[torch.arange(len(batch)), last_B] += episode_B - scores_B
    return rewards.float()


def last_active(mask_BT: torch.Tensor) -> torch.Tensor:
    """Position of the last active token of each row; 0 for a row without any."""
    positions = torch.arange(mask_BT.shape[-1])
    return (positions * mask_BT).amax(dim=-1)


def has_company(batch: DataProto, config: AlgorithmConfig) -> torch.Tensor:
    """(R,) False where an environment's failure left a trajectory alone in its group.

    Nothing is there to compare it with, so it teaches nothing. Estimators without groups keep all.
    """
    everyone = torch.ones(len(batch), dtype=torch.bool)
    if not compares_episodes(find_estimator(config.adv_estimator)):
        return everyone
    group_B = dense_ids(batch.non_tensor_batch["uid"])
    trajectory_B = dense_ids(batch.non_tensor_batch["traj_uid"])
    pairs = torch.unique(torch.stack([group_B, trajectory_B]), dim=1)
    sizes = torch.bincount(pairs[0])
    return sizes[group_B] > 1 if int(sizes.max()) > 1 else everyone


def rows_with_signal(batch: DataProto) -> np.ndarray:
    """Indices of the rows of groups in which not all advantages are zero."""
    active_B = (batch.batch["advantages"] * batch.batch["response_mask"]).abs().amax(dim=-1)
    group_B = dense_ids(batch.non_tensor_batch["uid"])
    rows_with_any = torch.bincount(group_B, weights=(active_B > 0).double())
    return np.flatnonzero((rows_with_any[group_B] > 0).numpy())
