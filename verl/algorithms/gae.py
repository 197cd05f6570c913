"""Generalised advantage estimation over the tokens a policy produced, across gaps and turns.

Shapes: B rows, T response columns, N trajectories, S time (a trajectory's active tokens, in order).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from verl.algorithms.aggregation import dense_ids
from verl.algorithms.estimators import estimator
from verl.utils.torch_functional import masked_whiten


@estimator("gae")
def compute_gae_advantage_return(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float | None = None,
    lam: float | None = None,
    traj_index: np.ndarray | Tensor | None = None,
    turn_index: np.ndarray | Tensor | None = None,
    config: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """GAE, advantages whitened over all active tokens. All tensors (B, T).

    Each row is a trajectory of its own unless `traj_index` and `turn_index` say otherwise
    (`compute_gae_across_turns`). `gamma` and `lam` default to the config's, without a config to 1.

    Returns:
        (advantages, returns), both 0 where the mask is 0.
    """
    discount, trace = (1.0, 1.0) if config is None else (config.gamma, config.lam)
    discount = discount if gamma is None else gamma
    trace = trace if lam is None else lam
    if traj_index is None or turn_index is None:
        traj_index = torch.arange(response_mask.shape[0])
        turn_index = torch.zeros_like(traj_index)
    return compute_gae_across_turns(
        token_level_rewards, values, response_mask, discount, trace, traj_index, turn_index
    )


def compute_gae_across_turns(
    token_level_rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float,
    lam: float,
    traj_ids_B: np.ndarray | Tensor,
    turn_B: np.ndarray | Tensor,
) -> tuple[Tensor, Tensor]:
    """GAE where rows are turns: the last token of a turn looks ahead to the first of the next turn.

    The rewards must be those of each turn alone (a reward repeated in every row would count once a
    row). Equal, token by token, to the same trajectory written in one row.

    Args:
        traj_ids_B: the trajectory of each row; turn_B: its place in the trajectory.

    Returns:
        (advantages whitened over all active tokens, returns), both (B, T), 0 where the mask is 0.

    Raises:
        ValueError: two rows with active tokens are the same turn of the same trajectory.
    """
    advantages, returns = gae(
        token_level_rewards, values, response_mask, gamma, lam, traj_ids_B, turn_B
    )
    return masked_whiten(advantages, response_mask) * response_mask, returns


@torch.no_grad()
def gae(
    reward_BT: Tensor,
    value_BT: Tensor,
    mask_BT: Tensor,
    gamma: float,
    lam: float,
    traj_ids_B: np.ndarray | Tensor,
    turn_B: np.ndarray | Tensor,
) -> tuple[Tensor, Tensor]:
    """Advantages as they are (not whitened) and returns; arXiv:1506.02438, equation 16.

        delta_s = r_s + gamma * V_{s+1} - V_s        A_s = delta_s + gamma * lam * A_{s+1}

    where s+1 is the next *active* token of the trajectory: observation tokens take no time. The
    value after the last token is 0.
    """
    line = _timeline(mask_BT.bool(), traj_ids_B, turn_B)
    places = (line.time, line.trajectory)
    reward_SN = reward_BT.new_zeros(line.length, line.trajectories)
    value_SN = value_BT.new_zeros(line.length + 1, line.trajectories)
    reward_SN[places] = reward_BT[line.row, line.column]
    value_SN[places] = value_BT[line.row, line.column]

    advantage_SN = reward_SN + gamma * value_SN[1:] - value_SN[:-1]
    steps = advantage_SN.unbind(0)  # time-major: every step of the scan is one contiguous add
    for now, after in zip(reversed(steps[:-1]), reversed(steps[1:]), strict=True):
        now.add_(after, alpha=float(gamma * lam))

    advantage_BT = advantage_SN.new_zeros(mask_BT.shape)
    return_BT = advantage_SN.new_zeros(mask_BT.shape)
    advantage_BT[line.row, line.column] = advantage_SN[places]
    return_BT[line.row, line.column] = advantage_SN[places] + value_SN[places]
    return advantage_BT, return_BT


class _Timeline(NamedTuple):
    """Where each active token (row, column) stands in its trajectory's time."""

    row: Tensor
    column: Tensor
    trajectory: Tensor
    time: Tensor
    trajectories: int
    length: int


def _timeline(
    mask_BT: Tensor, traj_ids_B: np.ndarray | Tensor, turn_B: np.ndarray | Tensor
) -> _Timeline:
    trajectory_B = dense_ids(traj_ids_B).to(mask_BT.device)
    turn_rank_B = dense_ids(turn_B).to(mask_BT.device)
    turn_key_B = trajectory_B * (mask_BT.shape[0] + 1) + turn_rank_B
    _refuse_repeated_turns(turn_key_B[mask_BT.any(dim=-1)])

    order_B = turn_key_B.argsort()
    sorted_row, column = mask_BT[order_B].nonzero(
        as_tuple=True
    )  # row-major, so already in time order
    row = order_B[sorted_row]
    trajectory = trajectory_B[row]
    trajectories = int(trajectory_B.max()) + 1
    tokens_N = torch.bincount(trajectory, minlength=trajectories)
    start_N = tokens_N.cumsum(0) - tokens_N
    time = torch.arange(row.numel(), device=mask_BT.device) - start_N[trajectory]
    return _Timeline(row, column, trajectory, time, trajectories, int(tokens_N.max()))


def _refuse_repeated_turns(active_turn_keys: Tensor) -> None:
    if active_turn_keys.unique().numel() < active_turn_keys.numel():
        raise ValueError(
            "two rows hold the same turn of the same trajectory; number the turns, "
            "and give padding rows an all-zero mask"
        )
