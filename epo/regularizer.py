"""The term that EPO adds to the actor's loss. Runs on the workers, once a micro-batch.

Shapes: B rows of a micro-batch, T response tokens. Entropies in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from epo.config import EPOConfig
from epo.corridor import PENALTIES, level_of_tokens

# Columns with the weight of each token in the mean over the whole mini-batch, 0 off the mask:
# trajectory_weight = 1 / (trajectories * turns * tokens), token_weight = 1 / tokens.
WEIGHT_COLUMNS = {"trajectory": "trajectory_weight", "token_mean": "token_weight"}


class StepContext(Protocol):
    """What all ranks agree on in a step; `state` is `EPOHook.context_state`."""

    @property
    def state(self) -> Mapping[str, Any]: ...


class EPORegularizer:
    """-lambda * (L_H - beta_k * L_smooth) as a partial sum over the tokens of a micro-batch.

    Each token comes with its weight in the mini-batch's mean, so the terms of any partition into
    micro-batches and ranks add up to the term of the mini-batch, and so do their gradients.

    `from_turn` concerns the smoothing alone: tokens of earlier turns still earn the entropy bonus
    L_H but pay no penalty. The weights stay as they are: a penalised token pays the same whatever
    `from_turn`.
    """

    def __init__(self, config: EPOConfig) -> None:
        self.required_columns: tuple[str, ...] = (WEIGHT_COLUMNS[config.aggregation], "turn_ids")
        self._coeff = config.entropy_coeff
        self._alpha = config.alpha
        self._penalty = PENALTIES[config.penalty]
        self._from_turn = config.from_turn

    def __call__(
        self,
        entropy_BT: Tensor,
        mask_BT: Tensor,
        columns: Mapping[str, Tensor],
        context: StepContext,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term to add to the loss, and its parts.

        Args:
            entropy_BT: full-vocabulary entropy of each token's distribution, with its gradient.
            mask_BT: 1 on sampled tokens.
            columns: `required_columns`, each (B, T).

        Returns:
            the 0-d term, and detached 0-d partial sums: `epo/entropy` (L_H), `epo/penalty`
            (L_smooth), `epo/share_below` and `epo/share_above` (weighted shares of tokens outside
            the corridor), `epo/loss` (the term).
        """
        active_BT = mask_BT.bool()
        dtype = torch.promote_types(entropy_BT.dtype, torch.float32)
        entropy_BT = torch.where(
            active_BT, entropy_BT.to(dtype), 0.0
        )  # not a product: 0 * nan is nan
        weight_BT = torch.where(active_BT, columns[self.required_columns[0]], 0.0)

        entropy = (weight_BT * entropy_BT).sum()
        smooth, below, above = self._smoothing(
            entropy_BT, weight_BT, columns["turn_ids"], context.state
        )
        loss = -self._coeff * (entropy - context.state["beta"] * smooth)
        metrics = {
            "epo/entropy": entropy,
            "epo/penalty": smooth,
            "epo/share_below": below,
            "epo/share_above": above,
            "epo/loss": loss,
        }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _smoothing(
        self, entropy_BT: Tensor, weight_BT: Tensor, turn_BT: Tensor, state: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L_smooth and the shares below and above; zeros while there is no past to compare with."""
        if state["reference"] is None:
            zero = entropy_BT.new_zeros(())
            return zero, zero, zero
        lower = level_of_tokens(state["lower"], turn_BT, entropy_BT.dtype)
        upper = level_of_tokens(state["upper"], turn_BT, entropy_BT.dtype)
        weight_BT = torch.where(turn_BT >= self._from_turn, weight_BT, 0.0)
        smooth = self._alpha * (weight_BT * self._penalty(entropy_BT, lower, upper)).sum()
        return (
            smooth,
            (weight_BT * (entropy_BT < lower)).sum(),
            (weight_BT * (entropy_BT > upper)).sum(),
        )
