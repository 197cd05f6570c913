"""The critic-free advantage estimators: one outcome for an episode, compared with others.

Shapes: B rows, T response tokens, N trajectories, G groups. A trajectory may be one row or many
(one a turn). Every statistic counts a trajectory once, however many rows it has, or long episodes
would dominate the baseline. GAE, which reads a critic, is in `gae.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verl.algorithms.aggregation import Ids, dense_ids
from verl.algorithms.estimators import ESTIMATORS, Estimator, estimator
from verl.algorithms.gae import gae
from verl.utils.importing import resolve_choice
from verl.utils.torch_functional import masked_whiten


@dataclass(frozen=True)
class TrajectoryGroups:
    """Which trajectory each row belongs to, and which group each trajectory."""

    trajectory_B: Tensor
    group_N: Tensor

    @classmethod
    def of(
        cls, group_id_B: Ids, trajectory_id_B: Ids | None, device: torch.device
    ) -> TrajectoryGroups:
        """Without trajectory ids each row is its own trajectory.

        Raises:
            ValueError: the rows of one trajectory are in different groups.
        """
        group_B = dense_ids(group_id_B).to(device)
        if trajectory_id_B is None:
            return cls(torch.arange(group_B.numel(), device=device), group_B)
        trajectory_B = dense_ids(trajectory_id_B).to(device)
        group_N = group_B.new_zeros(int(trajectory_B.max()) + 1 if trajectory_B.numel() else 0)
        group_N[trajectory_B] = group_B
        if not torch.equal(group_N[trajectory_B], group_B):
            raise ValueError(
                "a trajectory has rows in two groups; its rows must share one group id"
            )
        return cls(trajectory_B, group_N)

    @property
    def size_N(self) -> Tensor:
        """The number of trajectories in the group of each trajectory."""
        return torch.bincount(self.group_N)[self.group_N]

    def trajectory_mean(self, x_B: Tensor) -> Tensor:
        """Mean over the rows of each trajectory. In float64 means of equal numbers are equal."""
        return self.trajectory_sum(x_B) / torch.bincount(self.trajectory_B)

    def trajectory_sum(self, x_B: Tensor) -> Tensor:
        return x_B.new_zeros(self.group_N.numel(), dtype=torch.float64).index_add_(
            0, self.trajectory_B, x_B.double()
        )

    def group_sum(self, x_N: Tensor) -> Tensor:
        """Sum over the trajectories of each group, handed to every trajectory of it."""
        groups = int(self.group_N.max()) + 1 if self.group_N.numel() else 0
        return x_N.new_zeros(groups).index_add_(0, self.group_N, x_N)[self.group_N]

    def baseline(self, reward_N: Tensor) -> Tensor:
        """The group's mean reward; 0 for a trajectory that is alone in its group."""
        return torch.where(self.size_N > 1, self.group_sum(reward_N) / self.size_N, 0.0)


def find_estimator(choice: str) -> Estimator:
    """The estimator of a name, or at the import path `package.module:function`.

    Raises:
        UserError: there is none.
    """
    return resolve_choice("algorithm.adv_estimator", choice, ESTIMATORS)


def outcome_estimator(*names: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: makes an advantage of rows, (B,), the estimator of these names.

    The estimator sums the rewards of each row, hands the rows on with their groups, and writes the
    advantage under every active token. Padding rows (all-zero mask) take no part. Of the options
    (`normalize_std`, `epsilon`, `f_norm`, `length_B`) the advantage gets those that it takes.
    """

    def add(advantage: Callable[..., Tensor]) -> Callable[..., Tensor]:
        taken = inspect.signature(advantage).parameters

        @estimator(*names, compares_episodes=True)
        @torch.no_grad()
        def estimate(
            token_level_rewards: Tensor,
            response_mask: Tensor,
            index: Ids,
            epsilon: float = 1e-6,
            norm_adv_by_std_in_grpo: bool | None = None,
            config: Any = None,
            traj_index: Ids | None = None,
            f_norm: float = 1.0,
            **_: Any,
        ) -> tuple[Tensor, Tensor]:
            """
            Args:
                token_level_rewards, response_mask: (B, T).
                index: (B,) group of each row; traj_index: (B,) trajectory of each row.
                norm_adv_by_std_in_grpo: default `config.norm_adv_by_std_in_grpo`, else True.

            Returns:
                (advantages, returns): the same (B, T) tensor twice, as there is no critic.
            """
            if norm_adv_by_std_in_grpo is None:
                norm_adv_by_std_in_grpo = config is None or config.norm_adv_by_std_in_grpo
            active_B = response_mask.bool().any(dim=-1)
            offered = {
                "normalize_std": norm_adv_by_std_in_grpo,
                "epsilon": epsilon,
                "f_norm": f_norm,
                "length_B": response_mask.sum(dim=-1)[active_B],
            }
            groups = [
                None if ids is None else dense_ids(ids).to(active_B.device)[active_B]
                for ids in (index, traj_index)
            ]
            advantage_B = torch.zeros_like(token_level_rewards[:, 0])
            advantage_B[active_B] = advantage(
                token_level_rewards.sum(dim=-1)[active_B],
                *groups,
                **{name: value for name, value in offered.items() if name in taken},
            )
            advantage_BT = advantage_B.unsqueeze(-1) * response_mask
            return advantage_BT, advantage_BT

        return advantage

    return add


@outcome_estimator("grpo", "grpo_vectorized")
def grpo_advantage(
    reward_B: Tensor,
    group_id_B: Ids,
    trajectory_id_B: Ids | None = None,
    *,
    normalize_std: bool = True,
    epsilon: float = 1e-6,
) -> Tensor:
    """GRPO (arXiv:2402.03300): (reward - mean) / (std + epsilon) within the group.

    The rows of a trajectory normally carry the same reward, the episode's. Where they differ (a
    penalty for one turn) each row keeps its own, and the rows share the trajectory's one vote in
    mean and std. std has Bessel's correction over trajectories. A group of one: mean 0, std 1.
    `normalize_std=False` is Dr. GRPO (arXiv:2503.20783).
    """
    groups = TrajectoryGroups.of(group_id_B, trajectory_id_B, reward_B.device)
    mean_N = groups.baseline(groups.trajectory_mean(reward_B))
    centred_B = reward_B.double() - mean_N[groups.trajectory_B]
    if normalize_std:
        square_N = groups.group_sum(groups.trajectory_mean(centred_B.square()))
        std_N = torch.where(
            groups.size_N > 1, (square_N / (groups.size_N - 1).clamp(min=1)).sqrt(), 1.0
        )
        centred_B = centred_B / (std_N[groups.trajectory_B] + epsilon)
    return centred_B.to(reward_B.dtype)


@outcome_estimator("rloo", "rloo_vectorized")
def rloo_advantage(reward_B: Tensor, group_id_B: Ids, trajectory_id_B: Ids | None = None) -> Tensor:
    """RLOO (arXiv:2402.14740): reward minus the mean of the *other* trajectories of the group."""
    groups = TrajectoryGroups.of(group_id_B, trajectory_id_B, reward_B.device)
    reward_N = groups.trajectory_mean(reward_B)
    others_N = (groups.group_sum(reward_N) - reward_N) / (groups.size_N - 1).clamp(min=1)
    return (reward_B.double() - others_N[groups.trajectory_B]).to(reward_B.dtype)


@outcome_estimator("opo")
def opo_advantage(
    reward_B: Tensor, group_id_B: Ids, trajectory_id_B: Ids | None = None, *, length_B: Tensor
) -> Tensor:
    """OPO (arXiv:2505.23585): the baseline weighs each trajectory by its number of tokens."""
    groups = TrajectoryGroups.of(group_id_B, trajectory_id_B, reward_B.device)
    reward_N = groups.trajectory_mean(reward_B)
    tokens_N = groups.trajectory_sum(length_B)
    mean_N = groups.group_sum(tokens_N * reward_N) / groups.group_sum(tokens_N)
    baseline_N = torch.where(groups.size_N > 1, mean_N, 0.0)
    return (reward_B.double() - baseline_N[groups.trajectory_B]).to(reward_B.dtype)


@outcome_estimator("gpg")
def gpg_advantage(
    reward_B: Tensor, group_id_B: Ids, trajectory_id_B: Ids | None = None, *, f_norm: float = 1.0
) -> Tensor:
    """GPG (arXiv:2504.02546): alpha * (reward - mean) / f_norm, alpha = N / (N with a reward)."""
    groups = TrajectoryGroups.of(group_id_B, trajectory_id_B, reward_B.device)
    reward_N = groups.trajectory_mean(reward_B)
    alpha = reward_N.numel() / reward_N.count_nonzero().clamp(min=1)
    baseline_B = groups.baseline(reward_N)[groups.trajectory_B]
    return (alpha * (reward_B.double() - baseline_B) / f_norm).to(reward_B.dtype)


@outcome_estimator("grpo_passk")
def passk_advantage(
    reward_B: Tensor,
    group_id_B: Ids,
    trajectory_id_B: Ids | None = None,
    *,
    normalize_std: bool = True,
    epsilon: float = 1e-6,
) -> Tensor:
    """Pass@k (arXiv:2503.19595): the best trajectory gets best - second best, all others 0.

    Raises:
        ValueError: a group has fewer than two trajectories.
    """
    groups = TrajectoryGroups.of(group_id_B, trajectory_id_B, reward_B.device)
    if int(groups.size_N.min()) < 2:
        raise ValueError(
            "grpo_passk needs at least 2 trajectories in every group; raise env.rollout.n"
        )
    reward_N = groups.trajectory_mean(reward_B)
    order_N = reward_N.argsort(descending=True, stable=True)
    order_N = order_N[groups.group_N[order_N].argsort(stable=True)]  # by group, best first
    size_G = torch.bincount(groups.group_N)
    best_G = size_G.cumsum(0) - size_G
    lead_G = reward_N[order_N[best_G]] - reward_N[order_N[best_G + 1]]
    if normalize_std:
        square_N = groups.group_sum((reward_N - groups.baseline(reward_N)).square())
        lead_G = lead_G / ((square_N / (groups.size_N - 1)).sqrt()[order_N[best_G]] + epsilon)
    advantage_N = torch.zeros_like(reward_N).index_copy_(0, order_N[best_G], lead_G)
    return advantage_N[groups.trajectory_B].to(reward_B.dtype)


@estimator("reinforce_plus_plus_baseline", compares_episodes=True)
@torch.no_grad()
def compute_reinforce_plus_plus_baseline_outcome_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Ids, **options: Any
) -> tuple[Tensor, Tensor]:
    """REINFORCE++-baseline (arXiv:2501.03262): reward minus the group's mean, then whitened."""
    centred_BT, _ = ESTIMATORS["grpo"](
        token_level_rewards, response_mask, index, **{**options, "norm_adv_by_std_in_grpo": False}
    )
    advantage_BT = masked_whiten(centred_BT, response_mask) * response_mask
    return advantage_BT, advantage_BT


@estimator("reinforce_plus_plus")
@torch.no_grad()
def compute_reinforce_plus_plus_outcome_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """REINFORCE++ (arXiv:2501.03262): discounted reward to go, whitened over all active tokens.

    Args:
        config: read for `gamma`; without it gamma is 1.

    Returns:
        (advantages, returns), (B, T). Observation tokens inside a row take no time.
    """
    gamma = 1.0 if config is None else config.gamma
    row_B = torch.arange(response_mask.shape[0])
    no_value_BT = torch.zeros_like(token_level_rewards)
    # with values 0 and lambda 1, GAE is the discounted reward to go
    turn_B = torch.zeros_like(row_B)
    return_BT = gae(token_level_rewards, no_value_BT, response_mask, gamma, 1.0, row_B, turn_B)[0]
    return masked_whiten(return_BT, response_mask) * response_mask, return_BT


# Not in the list of estimators: the trainer has no rollouts and no rewards to feed them with.
@torch.no_grad()
def compute_remax_outcome_advantage(
    token_level_rewards: Tensor,
    reward_baselines: Tensor,
    response_mask: Tensor,
    config: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """ReMax (arXiv:2310.10505): reward to go minus `reward_baselines` (B,) of greedy responses."""
    masked_BT = token_level_rewards * response_mask
    return_BT = masked_BT.flip(-1).cumsum(-1).flip(-1)
    return return_BT - reward_baselines.unsqueeze(-1) * response_mask, return_BT


@torch.no_grad()
def compute_gdpo_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Ids,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool | None = None,
    config: Any = None,
    non_tensor_batch: dict[str, np.ndarray] | None = None,
    traj_index: Ids | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """GDPO (arXiv:2601.05242): GRPO for each reward on its own, weighted sum, whitened over tokens.

    Args:
        config: read for `gdpo_reward_keys` (columns of `non_tensor_batch`, each (B,)) and
            `gdpo_reward_weights` (None: all 1). Without config or columns: the token-level rewards.
    """
    rewards_BT, weights = [token_level_rewards], [1.0]
    if config is not None and non_tensor_batch is not None:
        keys = list(config.gdpo_reward_keys)
        weights = (
            [1.0] * len(keys)
            if config.gdpo_reward_weights is None
            else list(config.gdpo_reward_weights)
        )
        assert len(weights) == len(keys), (
            f"gdpo_reward_weights has {len(weights)} entries for {len(keys)} gdpo_reward_keys; "
            "give one weight a key"
        )
        columns = [
            torch.as_tensor(np.asarray(non_tensor_batch[key], dtype=np.float32)) for key in keys
        ]
        rewards_BT = [column.to(token_level_rewards.device).unsqueeze(-1) for column in columns]
    advantage_BT = torch.zeros_like(token_level_rewards)
    for weight, reward_BT in zip(weights, rewards_BT, strict=True):
        advantage_BT += (
            weight
            * ESTIMATORS["grpo"](
                reward_BT,
                response_mask,
                index,
                epsilon,
                norm_adv_by_std_in_grpo,
                traj_index=traj_index,
            )[0]
        )
    advantage_BT = masked_whiten(advantage_BT, response_mask) * response_mask
    return advantage_BT, advantage_BT
