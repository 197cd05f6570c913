"""What every rank must agree on in one optimiser step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from verl.algorithms.entropy_control import StepContext


class Normalizers(TypedDict):
    """What `agg_loss` divides by."""

    batch_num_tokens: int
    global_batch_size: int
    loss_scale_factor: int | None


@dataclass(frozen=True)
class UpdateContext:
    """The training step, and the counts over the whole mini-batch, of all ranks, by which every
    term of the loss is divided (`loss_normalizers`)."""

    step: StepContext
    batch_num_tokens: int
    global_batch_size: int

    def normalizers(self, loss_scale_factor: int | None) -> Normalizers:
        """With the constant that a loss may be divided by besides."""
        return Normalizers(
            batch_num_tokens=self.batch_num_tokens,
            global_batch_size=self.global_batch_size,
            loss_scale_factor=loss_scale_factor,
        )
