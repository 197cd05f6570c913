"""The policy of one data-parallel rank: log-probs and entropies, and the PPO update.

Shapes: R rows of the rank, B rows of a micro-batch, T response positions, N active tokens, V
vocabulary.
"""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from verl.algorithms.aggregation import agg_loss
from verl.algorithms.entropy_control import EntropyRegularizer
from verl.algorithms.kl import full_kl, kl_penalty
from verl.algorithms.policy_losses import chosen_reduction, find_policy_loss
from verl.config.actor import ActorConfig
from verl.config.model import MicroBatchConfig
from verl.protocol.columns import POLICY_COLUMNS
from verl.utils.errors import UserError
from verl.utils.metrics import Metric
from verl.workers.actor.reference import ReferencePolicy
from verl.workers.forward import (
    ForwardInputs,
    active_logits,
    policy_forward,
    policy_statistics,
)
from verl.workers.passes import LossOutput, MicroBatch, learn, measure
from verl.workers.sharded_model import ShardedModel
from verl.workers.update_context import UpdateContext

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "actor/loss",
        "1",
        "mean",
        "what the gradient is of: policy loss, KL term and entropy term",
    ),
    (
        "actor/pg_loss",
        "1",
        "mean",
        "the policy loss (`actor_rollout_ref.actor.policy_loss.loss_mode`)",
    ),
    ("actor/kl_loss", "nats", "mean", "KL to the reference policy, before `kl_loss_coef`"),
    (
        "actor/entropy",
        "nats",
        "mean",
        "entropy of the policy that is updated, a mean as `loss_agg_mode` says",
    ),
)


class DataParallelPPOActor:
    """The loss is pg + kl_loss_coef * kl - entropy_coeff * entropy; a regulariser, where there is
    one, takes the place of the entropy term."""

    def __init__(
        self,
        config: ActorConfig,
        sharded: ShardedModel,
        *,
        temperature: float,
        packed: bool = False,
        regularizer: EntropyRegularizer | None = None,
        reference: ReferencePolicy | None = None,
    ) -> None:
        """
        Args:
            temperature: that the rollout was sampled with; log-probs and entropies are of
                softmax(logits / temperature).
            packed: rows are laid end to end in a forward (needs flash-attention to be fast).
            reference: needed for `kl_loss_type` full, which reads its whole distribution.

        Raises:
            UserError: unknown policy loss, or a KL loss without a reference.
        """
        self._config = config
        self._sharded = sharded
        self._temperature = temperature
        self._packed = packed
        self._regularizer = regularizer
        needs_whole = config.use_kl_loss and config.kl_loss_type == "full"
        if needs_whole and reference is None:
            raise UserError("actor.kl_loss_type=full needs the reference policy on the actor")
        self._whole_reference = reference if needs_whole else None
        self._policy_loss = find_policy_loss(config.policy_loss.loss_mode)
        self._agg_mode = chosen_reduction(self._policy_loss, config.loss_agg_mode)
        required = () if regularizer is None else regularizer.required_columns
        self._columns = (*POLICY_COLUMNS, *required)

    def compute_log_prob(self, batch: TensorDict, config: MicroBatchConfig) -> dict[str, Tensor]:
        """`log_probs` and `entropys` of the response tokens, (R, T) float32 on the CPU."""

        def forward(inputs: ForwardInputs) -> dict[str, Tensor]:
            statistics = policy_forward(self._sharded.model, inputs, self._temperature)
            return {"log_probs": statistics.log_prob_N, "entropys": statistics.entropy_N}

        return measure(self._sharded, batch, config, self._packed, forward)

    def update_policy(self, batch: TensorDict, context: UpdateContext) -> dict[str, Metric]:
        """One optimiser step on a mini-batch; metrics of the whole of it, equal on all ranks."""
        return learn(
            self._sharded,
            batch.select(*self._columns, strict=False),  # some are optional
            self._micro_batch_config(),
            self._packed,
            lambda micro: self._loss(micro, context),
            prefix="actor",
        )

    def _micro_batch_config(self) -> MicroBatchConfig:
        config = self._config
        return MicroBatchConfig(
            config.ppo_micro_batch_size_per_gpu,
            config.use_dynamic_bsz,
            config.ppo_max_token_len_per_gpu,
        )

    def _loss(self, micro: MicroBatch, context: UpdateContext) -> LossOutput:
        temperature = self._temperature
        reference_NV = None
        if self._whole_reference is not None:
            # first: with LoRA it is the same sharded model, whose backward comes next
            reference_NV = self._whole_reference.logits(micro.inputs)
        logits_NV = active_logits(self._sharded.model, micro.inputs)
        log_prob_BT, entropy_BT = policy_statistics(logits_NV, micro.inputs, temperature)

        loss, metrics = self._policy_gradient(log_prob_BT, micro.columns, context)
        if self._config.use_kl_loss:
            if reference_NV is not None:
                kl_N = full_kl(logits_NV.float() / temperature, reference_NV.float() / temperature)
                kl_BT = micro.inputs.to_rows(kl_N)
            else:
                kl_BT = kl_penalty(
                    log_prob_BT, micro.columns["ref_log_prob"], self._config.kl_loss_type
                )
            kl_loss = self._mean(kl_BT, micro.columns, context)
            loss = loss + self._config.kl_loss_coef * kl_loss
            metrics["actor/kl_loss"] = kl_loss.detach()
        loss = self._add_entropy_term(loss, metrics, entropy_BT, micro.columns, context)
        metrics["actor/loss"] = loss.detach()
        return LossOutput(loss, metrics)

    def _policy_gradient(
        self, log_prob_BT: Tensor, columns: TensorDict, context: UpdateContext
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """A rollout correction weighs the per-token loss; the denominators stay.

        For PPO that is weighing the advantages: a factor that is not negative commutes with min,
        max and clip. Here it also holds for losses that average advantages over a row.
        """
        loss, metrics = self._policy_loss(
            columns["old_log_probs"],
            log_prob_BT,
            columns["advantages"],
            columns["response_mask"],
            self._agg_mode,
            self._config,
            rollout_is_weights=columns.get("rollout_is_weights", None),
            **context.normalizers(self._config.loss_scale_factor),
        )
        return loss, {**metrics, "actor/pg_loss": loss.detach()}

    def _add_entropy_term(
        self,
        loss: Tensor,
        metrics: dict[str, Tensor | float],
        entropy_BT: Tensor,
        columns: TensorDict,
        context: UpdateContext,
    ) -> Tensor:
        """Without regulariser and coefficient the loss comes back untouched."""
        entropy = self._mean(entropy_BT, columns, context)
        metrics["actor/entropy"] = entropy.detach()
        if self._regularizer is not None:
            names = self._regularizer.required_columns
            term, parts = self._regularizer(
                entropy_BT,
                columns["response_mask"],
                {name: columns[name] for name in names},
                context.step,
            )
            metrics.update(parts)
            return loss + term
        if self._config.entropy_coeff != 0.0:
            return loss - self._config.entropy_coeff * entropy
        return loss

    def _mean(self, value_BT: Tensor, columns: TensorDict, context: UpdateContext) -> Tensor:
        """This micro-batch's share of the mini-batch's mean."""
        return agg_loss(
            value_BT,
            columns["response_mask"],
            self._agg_mode,
            **context.normalizers(self._config.loss_scale_factor),
        )
