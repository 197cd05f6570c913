"""What one training step tells about its batch, as metrics.

Shapes: R rows, T response positions, N active tokens.
"""

from __future__ import annotations

from verl.protocol import DataProto
from verl.trainer.ppo.metric_utils import (
    compute_data_metrics,
    compute_throughout_metrics,
    compute_timing_metrics,
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
        entropy_N = batch.batch["entropys"][batch.batch["response_mask"].bool()]
        share = (entropy_N > entropy_threshold).float().mean()
        metrics["training/entropy_above_share"] = float(share)
    return metrics


def batch_metrics(
    batch: DataProto, seconds: dict[str, float], n_gpus: int, use_critic: bool
) -> dict[str, float]:
    """What the batch holds, and where the time went: `seconds` of each phase of the step."""
    batch.meta_info["global_token_num"] = batch.batch["attention_mask"].sum(-1).tolist()
    metrics = {
        **compute_data_metrics(batch, use_critic=use_critic),
        **compute_timing_metrics(batch, seconds),
        **compute_throughout_metrics(batch, seconds, n_gpus=n_gpus),
    }
    # A batch is as wide as its longest row, so some row would always count as clipped.
    return {k: v for k, v in metrics.items() if not k.endswith("/clip_ratio")}
