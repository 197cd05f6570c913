"""From a matrix of per-token values to one number, whatever the batching.

Shapes: B rows, T response tokens, N trajectories, S turns. A row with an all-zero mask is padding:
it never counts as a sequence, a turn or a trajectory.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LOSS_AGG_MODES = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)

Ids = np.ndarray | Tensor | Sequence  # one a row, strings or integers


def agg_loss(
    loss_mat: Tensor,
    loss_mask: Tensor,
    loss_agg_mode: str,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: int | None = None,
) -> Tensor:
    """Reduce per-token losses (B, T) to a scalar.

    With `m` the mask, `l` the losses and n the number of rows that have an active token:

    - ``token-mean``: sum(m*l) / sum(m)
    - ``seq-mean-token-sum``: sum_rows(sum_t m*l) / n
    - ``seq-mean-token-mean``: sum_rows(sum_t m*l / sum_t m) / n
    - ``seq-mean-token-sum-norm``: seq-mean-token-sum / loss_scale_factor (default T; Dr. GRPO,
      arXiv:2503.20783)

    Without normalisers the denominators are counted here. With those of a whole mini-batch
    (`loss_normalizers`) the result is this micro-batch's share: the shares of all micro-batches and
    ranks add up to the loss of the mini-batch. `dp_size` multiplies the share, for data-parallel
    wrappers that average gradients over ranks instead of adding them.

    Raises:
        ValueError: unknown mode, or `dp_size` > 1 without the normaliser that the mode needs.
    """
    if loss_agg_mode not in LOSS_AGG_MODES:
        raise ValueError(
            f"unknown loss_agg_mode '{loss_agg_mode}'; available: {', '.join(LOSS_AGG_MODES)}"
        )
    mask_BT = loss_mask.bool()
    loss_BT = torch.where(
        mask_BT, loss_mat, 0.0
    )  # not a product: 0 * inf at a masked position is nan
    tokens_B = mask_BT.sum(dim=-1)

    if loss_agg_mode == "token-mean":
        count = _denominator(batch_num_tokens, tokens_B.sum(), dp_size, "batch_num_tokens")
        return loss_BT.sum() / count * dp_size

    loss_B = loss_BT.sum(dim=-1)
    if loss_agg_mode == "seq-mean-token-mean":
        loss_B = loss_B / tokens_B.clamp(min=1)
    if loss_agg_mode == "seq-mean-token-sum-norm":
        loss_B = loss_B / (mask_BT.shape[-1] if loss_scale_factor is None else loss_scale_factor)
    count = _denominator(global_batch_size, (tokens_B > 0).sum(), dp_size, "global_batch_size")
    return loss_B.sum() / count * dp_size


def _denominator(given: int | None, counted: Tensor, dp_size: int, name: str) -> int | Tensor:
    if given is not None:
        return given
    if dp_size > 1:
        raise ValueError(
            f"{name} is required when dp_size is {dp_size}: one rank cannot count the others"
        )
    return counted.clamp(min=1)  # a micro-batch of padding rows alone has loss 0, not nan


def loss_normalizers(response_mask: Tensor) -> dict[str, int]:
    """The counts over a whole mini-batch that make `agg_loss` of its micro-batches add up.

    Args:
        response_mask: (B, T), all rows of the mini-batch, of all ranks.
    """
    tokens_B = response_mask.bool().sum(dim=-1)
    return {"batch_num_tokens": int(tokens_B.sum()), "global_batch_size": int((tokens_B > 0).sum())}


def dense_ids(ids: Ids) -> Tensor:
    """Number arbitrary ids 0..n-1, equal ids alike: (B,) of strings or integers -> (B,) int64."""
    if isinstance(ids, Tensor):
        return torch.unique(ids, return_inverse=True)[1]
    return torch.from_numpy(np.unique(np.asarray(ids), return_inverse=True)[1].reshape(-1)).long()


def trajectory_token_weights(
    traj_ids_B: np.ndarray | Tensor, turn_ids_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """Weights of mean_over_trajectories(mean_over_turns(mean_over_tokens)): (B, T) float32, sum 1.

    An active token of trajectory j and turn t weighs 1 / (trajectories * turns(j) * tokens(j, t)),
    so that `(weights * values).sum()` is the nested mean of the EPO paper (arXiv:2509.22576). A
    trajectory may be spread over rows (one a turn) or hold all its turns in one row.

    Args:
        traj_ids_B: the trajectory of each row.
        turn_ids_BT: the turn of each token, -1 where there is none.
        mask_BT: active tokens.

    Raises:
        ValueError: an active token has no turn.
    """
    row, column = mask_BT.bool().nonzero(as_tuple=True)
    turn = turn_ids_BT[row, column].long()
    weight_BT = torch.zeros(mask_BT.shape, dtype=torch.float32, device=mask_BT.device)
    if row.numel() == 0:
        return weight_BT
    if int(turn.min()) < 0:
        raise ValueError(
            "an active token has turn -1; give every token under the mask the turn it belongs to"
        )

    trajectory_B = dense_ids(traj_ids_B).to(mask_BT.device)
    n_turns = int(turn.max()) + 1
    cell = trajectory_B[row] * n_turns + turn
    tokens_NS = torch.bincount(cell, minlength=(int(trajectory_B.max()) + 1) * n_turns).view(
        -1, n_turns
    )
    turns_N = (tokens_NS > 0).sum(dim=-1)
    trajectories = (turns_N > 0).sum()
    denominator = trajectories * turns_N[trajectory_B[row]] * tokens_NS.view(-1)[cell]
    weight_BT[row, column] = denominator.double().reciprocal().float()
    return weight_BT
