"""The frozen policy that a KL term compares with."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from verl.workers.forward import ForwardInputs, active_logits
from verl.workers.fsdp_engine import FSDPEngine


class ReferencePolicy:
    """The policy as it was at the start: a model of its own, or the actor without its adapters."""

    def __init__(self, engine: FSDPEngine, *, is_actor: bool) -> None:
        """`is_actor`: `engine` is the actor's and trains LoRA adapters; else it is frozen."""
        self.engine = engine
        self._is_actor = is_actor

    @torch.no_grad()
    def logits(self, inputs: ForwardInputs) -> Tensor:
        """(N, V) raw logits of the active tokens."""
        with self.engine.model.disable_adapter() if self._is_actor else nullcontext():
            return active_logits(self.engine.model, inputs)
