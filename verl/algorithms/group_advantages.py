"""Critic-free advantages: one outcome for an episode, compared within its group.

Shapes: B rows, N trajectories, G groups. A trajectory may be one row or many (one a turn). Every
statistic counts a trajectory once, however many rows it has, or long episodes would dominate the
baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verl.algorithms.aggregation import dense_ids

Ids = np.ndarray | Tensor | Sequence


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


def rloo_advantage(reward_B: Tensor, group_id_B: Ids, trajectory_id_B: Ids | None = None) -> Tensor:
    """RLOO (arXiv:2402.14740): reward minus the mean of the *other* trajectories of the group."""
    groups = TrajectoryGroups.of(group_id_B, trajectory_id_B, reward_B.device)
    reward_N = groups.trajectory_mean(reward_B)
    others_N = (groups.group_sum(reward_N) - reward_N) / (groups.size_N - 1).clamp(min=1)
    return (reward_B.double() - others_N[groups.trajectory_B]).to(reward_B.dtype)


def opo_advantage(
    reward_B: Tensor, length_B: Tensor, group_id_B: Ids, trajectory_id_B: Ids | None = None
) -> Tensor:
    """OPO (arXiv:2505.23585): the baseline weighs each trajectory by its number of tokens."""
    groups = TrajectoryGroups.of(group_id_B, trajectory_id_B, reward_B.device)
    reward_N = groups.trajectory_mean(reward_B)
    tokens_N = groups.trajectory_sum(length_B)
    mean_N = groups.group_sum(tokens_N * reward_N) / groups.group_sum(tokens_N)
    baseline_N = torch.where(groups.size_N > 1, mean_N, 0.0)
    return (reward_B.double() - baseline_N[groups.trajectory_B]).to(reward_B.dtype)


def gpg_advantage(
    reward_B: Tensor, group_id_B: Ids, trajectory_id_B: Ids | None = None, *, f_norm: float = 1.0
) -> Tensor:
    """GPG (arXiv:2504.02546): alpha * (reward - mean) / f_norm, alpha = N / (N with a reward)."""
    groups = TrajectoryGroups.of(group_id_B, trajectory_id_B, reward_B.device)
    reward_N = groups.trajectory_mean(reward_B)
    alpha = reward_N.numel() / reward_N.count_nonzero().clamp(min=1)
    baseline_B = groups.baseline(reward_N)[groups.trajectory_B]
    return (alpha * (reward_B.double() - baseline_B) / f_norm).to(reward_B.dtype)


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
