"""A sharded policy's parameters, whole, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from verl.workers.sharded_model import under_first_names


def full_parameters(
    model: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    keep: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what a checkpoint of `model` holds; a tied weight once, as its first name.

    A collective: every rank iterates to the end, in step with the others. Shards are moved to
    `device` and floating ones cast to `dtype` before they are gathered, so the traffic and the one
    whole tensor that is there at a time are of the wire's size.

    Args:
        keep: which names to gather; the same on all ranks.
    """
    for name, shard in sharded_parameters(model).items():
        if not keep(name):
            continue
        sent = shard.detach().to(device, wire_dtype(shard, dtype))
        yield name, sent.full_tensor() if isinstance(sent, DTensor) else sent


def sharded_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as it is sharded, without the further names of tied weights."""
    # state_dict, not named_parameters: it also shards again what a forward pass left gathered
    return under_first_names(model, model.state_dict())


def wire_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """In what type `tensor` is sent: integers stay what they are."""
    return dtype if tensor.is_floating_point() else tensor.dtype
