"""The critic-free advantage estimators under the names and arguments known from verl.

Shapes: B rows, T response tokens. The maths is in `group_advantages.py` and `gae.py`. The trainer
calls every estimator with the same columns and the same config (`algorithm.*`), so each takes what
it needs and leaves the rest in `**_`; an argument given beside the config wins.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verl.algorithms.aggregation import dense_ids
from verl.algorithms.gae import gae
from verl.algorithms.group_advantages import (
    Ids,
    gpg_advantage,
    grpo_advantage,
    opo_advantage,
    passk_advantage,
    rloo_advantage,
)
from verl.utils.torch_functional import masked_whiten


@torch.no_grad()
def _outcome_advantage(
    advantage: Callable[..., Tensor],
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Ids,
    traj_index: Ids | None,
    *row_columns: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sum the rewards of each row, compare the rows, write the advantage under every active token.

    Padding rows (all-zero mask) take no part. `row_columns` (B,) follow the rewards as arguments of
    `advantage`.
    """
    active_B = response_mask.bool().any(dim=-1)
    columns = [column[active_B] for column in (token_level_rewards.sum(dim=-1), *row_columns)]
    ids = [
        None if x is None else dense_ids(x).to(active_B.device)[active_B]
        for x in (index, traj_index)
    ]
    advantage_B = torch.zeros_like(token_level_rewards[:, 0])
    advantage_B[active_B] = advantage(*columns, *ids)
    advantage_BT = advantage_B.unsqueeze(-1) * response_mask
    return advantage_BT, advantage_BT


def _normalize_std(given: bool | None, config: Any) -> bool:
    if given is None:
        return True if config is None else config.norm_adv_by_std_in_grpo
    return given


def compute_grpo_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Ids,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool | None = None,
    config: Any = None,
    traj_index: Ids | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """`grpo_advantage` for token-level rewards.

    Args:
        token_level_rewards, response_mask: (B, T).
        index: (B,) group of each row; traj_index: (B,) trajectory of each row.
        norm_adv_by_std_in_grpo: default `config.norm_adv_by_std_in_grpo`, without a config True.

    Returns:
        (advantages, returns): the same (B, T) tensor twice, as there is no critic.
    """
    grpo = partial(
        grpo_advantage,
        normalize_std=_normalize_std(norm_adv_by_std_in_grpo, config),
        epsilon=epsilon,
    )
    return _outcome_advantage(grpo, token_level_rewards, response_mask, index, traj_index)


def compute_rloo_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Ids,
    epsilon: float = 1e-6,
    config: Any = None,
    traj_index: Ids | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """`rloo_advantage` for token-level rewards; shapes as in `compute_grpo_outcome_advantage`."""
    return _outcome_advantage(rloo_advantage, token_level_rewards, response_mask, index, traj_index)


def compute_opo_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Ids,
    epsilon: float = 1e-6,
    config: Any = None,
    traj_index: Ids | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """`opo_advantage` for token-level rewards; shapes as in `compute_grpo_outcome_advantage`."""
    length_B = response_mask.sum(dim=-1)
    return _outcome_advantage(
        opo_advantage, token_level_rewards, response_mask, index, traj_index, length_B
    )


def compute_gpg_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Ids,
    epsilon: float = 1e-6,
    f_norm: float = 1.0,
    config: Any = None,
    traj_index: Ids | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """`gpg_advantage` for token-level rewards; shapes as in `compute_grpo_outcome_advantage`."""
    gpg = partial(gpg_advantage, f_norm=f_norm)
    return _outcome_advantage(gpg, token_level_rewards, response_mask, index, traj_index)


def compute_grpo_passk_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Ids,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool | None = None,
    config: Any = None,
    traj_index: Ids | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """`passk_advantage` for token-level rewards; shapes as in `compute_grpo_outcome_advantage`."""
    passk = partial(
        passk_advantage,
        normalize_std=_normalize_std(norm_adv_by_std_in_grpo, config),
        epsilon=epsilon,
    )
    return _outcome_advantage(passk, token_level_rewards, response_mask, index, traj_index)


@torch.no_grad()
def compute_reinforce_plus_plus_baseline_outcome_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Ids,
    epsilon: float = 1e-6,
    config: Any = None,
    traj_index: Ids | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """REINFORCE++-baseline (arXiv:2501.03262): reward minus the group's mean, then whitened."""
    centred = partial(grpo_advantage, normalize_std=False)
    advantage_BT, _ = _outcome_advantage(
        centred, token_level_rewards, response_mask, index, traj_index
    )
    advantage_BT = masked_whiten(advantage_BT, response_mask) * response_mask
    return advantage_BT, advantage_BT


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
    return_BT, _ = gae(
        token_level_rewards, no_value_BT, response_mask, gamma, 1.0, row_B, torch.zeros_like(row_B)
    )
    return masked_whiten(return_BT, response_mask) * response_mask, return_BT


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
            * compute_grpo_outcome_advantage(
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
