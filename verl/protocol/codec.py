"""Tensors to numpy views and back, so that pickle and Ray's object store need not copy them.

Numpy arrays travel out of band under pickle protocol 5: the sender hands over the memory it has,
the receiver maps it. Only a read-only mapping is copied, because workers edit batches in place.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from tensordict import TensorDict

# Same-width integers that numpy knows, for the dtypes it does not (bfloat16, float8, ...).
_CARRIER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NUMPY_DTYPES = frozenset(
    {
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    }
)


class EncodedTensor(NamedTuple):
    """A dense tensor: its dtype's name (``float32``), its shape and its memory as a numpy array."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray


def serialize_single_tensor(tensor: torch.Tensor) -> EncodedTensor:
    """Encode a dense tensor of any device and dtype. A CPU tensor in row order is not copied."""
    host = tensor.detach().cpu().contiguous()
    # Flattened before the view, because a 0-d tensor cannot change its dtype.
    flat = host.reshape(-1)
    if host.dtype not in _NUMPY_DTYPES:
        flat = flat.view(_CARRIER[host.element_size()])
    return EncodedTensor(str(host.dtype).removeprefix("torch."), tuple(host.shape), flat.numpy())


def deserialize_single_tensor(encoded: tuple[str, tuple[int, ...], np.ndarray]) -> torch.Tensor:
    """Inverse of :func:`serialize_single_tensor`; the tensor is on the CPU and writable."""
    dtype, shape, data = encoded
    writable = data if data.flags.writeable else data.copy()
    flat = torch.from_numpy(writable)
    target = getattr(torch, dtype)
    return (flat if flat.dtype == target else flat.view(target)).reshape(shape)


def serialize_tensordict(batch: TensorDict) -> tuple[tuple[int, ...], str | None, dict[str, Any]]:
    """``(batch_size, device, {key: encoded})`` of a flat TensorDict of dense tensors."""
    device = None if batch.device is None else str(batch.device)
    columns = cast(dict[str, torch.Tensor], dict(batch.items()))
    items = {key: serialize_single_tensor(value) for key, value in columns.items()}
    return tuple(batch.batch_size), device, items


def deserialize_tensordict(
    encoded: tuple[tuple[int, ...], str | None, dict[str, Any]],
) -> TensorDict:
    """Inverse of :func:`serialize_tensordict`.

    The batch returns to the device it came from, or stays on the CPU where that device is absent
    (a driver without a GPU reading a GPU worker's result).
    """
    batch_size, device, items = encoded
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"
    return TensorDict(
        {key: deserialize_single_tensor(value) for key, value in items.items()},
        batch_size=batch_size,
        device=device,
    )
