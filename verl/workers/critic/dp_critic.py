"""The value function of one data-parallel rank: values, and their update.

Shapes: R rows of the rank, T response positions.
"""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from verl.algorithms.aggregation import agg_loss
from verl.algorithms.policy_losses import compute_value_loss
from verl.config.critic import CriticConfig
from verl.config.model import MicroBatchConfig
from verl.protocol.columns import VALUE_COLUMNS
from verl.utils.metrics import Metric
from verl.workers.forward import value_forward
from verl.workers.passes import LossOutput, MicroBatch, learn, measure
from verl.workers.sharded_model import ShardedModel
from verl.workers.update_context import UpdateContext

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "critic/vf_loss",
        "reward^2",
        "mean",
        "half the squared error of the values, clipped as PPO does",
    ),
    ("critic/vf_clipfrac", "share", "mean", "tokens where the clip decides the loss"),
    ("critic/vpred_mean", "reward", "mean", "mean of the values that are updated"),
)


class DataParallelPPOCritic:
    """Predicts the return from each state, the state being all tokens before the response token."""

    def __init__(
        self, config: CriticConfig, sharded: ShardedModel, *, packed: bool = False
    ) -> None:
        self._config = config
        self._sharded = sharded
        self._packed = packed
        self._micro_batch = MicroBatchConfig(
            config.ppo_micro_batch_size_per_gpu,
            config.use_dynamic_bsz,
            config.ppo_max_token_len_per_gpu,
        )

    def compute_values(self, batch: TensorDict) -> Tensor:
        """(R, T) float32 on the CPU, 0 off the mask."""
        values = measure(
            self._sharded,
            batch,
            self._micro_batch,
            self._packed,
            lambda inputs: {"values": value_forward(self._sharded.model, inputs)},
        )
        return values["values"]

    def update_critic(self, batch: TensorDict, context: UpdateContext) -> dict[str, Metric]:
        """One optimiser step on a mini-batch; metrics of the whole of it, equal on all ranks."""
        return learn(
            self._sharded,
            batch.select(*VALUE_COLUMNS),
            self._micro_batch,
            self._packed,
            lambda micro: self._loss(micro, context),
            prefix="critic",
        )

    def _loss(self, micro: MicroBatch, context: UpdateContext) -> LossOutput:
        predicted_BT = value_forward(self._sharded.model, micro.inputs)
        mask_BT = micro.columns["response_mask"]
        loss, clip_share = compute_value_loss(
            predicted_BT,
            micro.columns["returns"],
            micro.columns["values"],
            mask_BT,
            self._config.cliprange_value,
            self._config.loss_agg_mode,
            **context.normalizers(self._config.loss_scale_factor),
        )
        mean_value = agg_loss(
            predicted_BT.detach(), mask_BT, "token-mean", batch_num_tokens=context.batch_num_tokens
        )
        metrics = {
            "critic/vf_loss": loss.detach(),
            "critic/vf_clipfrac": clip_share,
            "critic/vpred_mean": mean_value,
        }
        return LossOutput(loss, metrics)
