"""What one training step tells about its batch, and what it cost.

Shapes: R rows, T response positions, N trajectories. A row with an all-zero mask is padding and
counts nowhere but in the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl.algorithms.aggregation import dense_ids
from verl.protocol import DataProto

# Phases whose cost grows with the tokens of prompts and responses.
TOKEN_PHASES = ("old_log_prob", "ref", "values", "adv", "update_critic", "update_actor")

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "training/weight_age",
        "updates",
        "mean",
        "by which the weights that train are newer than those that sampled",
    ),
    (
        "training/entropy_above_share",
        "share",
        "mean",
        "tokens whose entropy is above `trainer.log_entropy_above`",
    ),
    ("critic/score/<mean|max|min>", "reward", "-", "what the environment gave, over trajectories"),
    ("critic/rewards/<mean|max|min>", "reward", "-", "the same less penalties and KL"),
    ("critic/advantages/<mean|max|min>", "1", "-", "over sampled tokens"),
    ("critic/returns/<mean|max|min>", "reward", "-", "over sampled tokens"),
    ("critic/values/<mean|max|min>", "reward", "-", "over sampled tokens, before the update"),
    (
        "critic/vf_explained_var",
        "share",
        "-",
        "of the variance of returns that the values explain; 1 is perfect",
    ),
    ("response_length/<mean|max|min>", "tokens", "-", "over rows: what follows the first prompt"),
    ("prompt_length/<mean|max|min>", "tokens", "-", "over rows: the first prompt"),
    ("perf/total_num_tokens", "tokens", "sum", "of the batch, prompts and responses"),
    ("perf/throughput", "tokens/s", "-", "these a second of the step and training rank"),
    ("timing_per_token_ms/<phase>", "ms", "-", "seconds of a phase for each of these tokens"),
)


def sampling_metrics(
    batch: DataProto, step: int, entropy_threshold: float | None
) -> dict[str, float]:
    """By how many updates the weights of step `step` are newer than those that sampled the rows
    (the mean over rows), and the share of tokens whose entropy (nats) is above the threshold.

    `batch` has the columns `weight_version` (R,); with a threshold `entropys`, `response_mask`.
    """
    metrics = {"training/weight_age": step - float(batch.non_tensor_batch["weight_version"].mean())}
    if entropy_threshold is not None:
        entropy = batch.batch["entropys"][batch.batch["response_mask"].bool()]
        share = (entropy > entropy_threshold).float().mean()
        metrics["training/entropy_above_share"] = float(share)
    return metrics


def data_metrics(batch: DataProto) -> dict[str, float]:
    """Statistics of a batch with advantages (columns: see `verl.protocol.columns`).

    Scores and rewards count each trajectory once: its rows, each with the rewards of its own turns,
    are added up. Advantages, returns and values count each sampled token once, lengths each row.

    Raises:
        ValueError: no row has an active token.
    """
    columns = batch.batch
    mask_RT = columns["response_mask"].bool()
    active_R = mask_RT.any(dim=-1)
    if not active_R.any():
        raise ValueError(
            "the batch has no response token, so nothing can be measured; were all episodes lost?"
        )
    trajectory_R = dense_ids(batch.non_tensor_batch["traj_uid"][active_R.numpy()])

    def per_trajectory(column: str) -> Tensor:
        total_N = torch.zeros(int(trajectory_R.max()) + 1, dtype=torch.float64)
        return total_N.index_add_(0, trajectory_R, columns[column].sum(-1)[active_R].double())

    returns, token_RS = columns["returns"][mask_RT], columns["attention_mask"][active_R]
    metrics = {
        **_spread("critic/score", per_trajectory("token_level_scores")),
        **_spread("critic/rewards", per_trajectory("token_level_rewards")),
        **_spread("critic/advantages", columns["advantages"][mask_RT]),
        **_spread("critic/returns", returns),
        **_spread("response_length", token_RS[:, -mask_RT.shape[1] :].sum(-1)),
        **_spread("prompt_length", token_RS[:, : -mask_RT.shape[1]].sum(-1)),
    }
    if "values" in set(columns.keys()):
        values = columns["values"][mask_RT]
        metrics |= _spread("critic/values", values)
        metrics["critic/vf_explained_var"] = explained_variance(values, returns)
    return metrics


def _spread(name: str, values: Tensor) -> dict[str, float]:
    values = values.double()
    return {
        f"{name}/mean": values.mean().item(),
        f"{name}/max": values.max().item(),
        f"{name}/min": values.min().item(),
    }


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 for a perfect critic, 0 for a constant, negative for a harmful one."""
    unexplained = (returns - values).var(correction=0)
    return float(1.0 - unexplained / (returns.var(correction=0) + 1e-5))


def cost_metrics(batch: DataProto, seconds: dict[str, float], ranks: int) -> dict[str, float]:
    """Tokens of the batch, and what they cost: `seconds` of each phase of the step."""
    tokens = int(batch.batch["attention_mask"].sum())
    return {
        "perf/total_num_tokens": tokens,
        "perf/throughput": tokens / (seconds["step"] * ranks),
        **{
            f"timing_per_token_ms/{phase}": seconds[phase] * 1000.0 / tokens
            for phase in TOKEN_PHASES
            if phase in seconds
        },
    }
