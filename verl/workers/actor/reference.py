"""The frozen policy that a KL term compares with."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from verl.workers.forward import ForwardInputs, active_logits
from verl.workers.sharded_model import ShardedModel

if TYPE_CHECKING:
    from peft import PeftModel


class ReferencePolicy:
    """The policy as it was at the start: a model of its own, or the actor without its adapters."""

    def __init__(self, sharded: ShardedModel, *, is_actor: bool) -> None:
        """`is_actor`: `sharded` is the actor's and trains LoRA adapters; else it is frozen."""
        self.sharded = sharded
        self._is_actor = is_actor

    @torch.no_grad()
    def logits(self, inputs: ForwardInputs) -> Tensor:
        """(N, V) raw logits of the active tokens."""
        model = self.sharded.model
        with cast("PeftModel", model).disable_adapter() if self._is_actor else nullcontext():
            return active_logits(model, inputs)
