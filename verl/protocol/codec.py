"""Tensors to numpy views and back, so that pickle and Ray's object store need not copy them.

Numpy arrays travel out of band under pickle protocol 5: the sender hands over the memory it has,
the receiver maps it. Only a read-only mapping is copied, because workers edit batches in place.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict

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


class EncodedNested(NamedTuple):
    """A nested tensor: its layout's name and its dense parts.

    Jagged: ``(values, offsets)``. Strided: one part a row.
    """

    layout: str
    ragged_dim: int
    parts: list[EncodedTensor]


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


def _encode(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_nested:
        return serialize_single_tensor(value)
    if value.layout == torch.jagged:
        # `contiguous` drops the holes that `narrow` leaves, after which offsets describe all.
        dense = value.contiguous()
        parts = [serialize_single_tensor(t) for t in (dense.values(), dense.offsets())]
        return EncodedNested("jagged", dense._ragged_idx, parts)
    return EncodedNested("strided", 1, [serialize_single_tensor(t) for t in value.unbind()])


def _decode(value: Any) -> Any:
    if isinstance(value, EncodedTensor):
        return deserialize_single_tensor(value)
    if not isinstance(value, EncodedNested):
        return value
    parts = [deserialize_single_tensor(part) for part in value.parts]
    if value.layout == "jagged":
        values, offsets = parts
        return torch.nested.nested_tensor_from_jagged(values, offsets, jagged_dim=value.ragged_dim)
    return torch.nested.as_nested_tensor(parts)


def serialize_tensordict(batch: TensorDict) -> tuple[tuple[int, ...], str | None, dict[str, Any]]:
    """``(batch_size, device, {key: encoded})`` of a flat TensorDict; nested tensors are allowed."""
    device = None if batch.device is None else str(batch.device)
    items = {key: _encode(value) for key, value in batch.items()}
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
        {key: _decode(value) for key, value in items.items()}, batch_size=batch_size, device=device
    )


def join_tensordict(
    batch: TensorDict, columns: dict[str, np.ndarray], meta_info: dict[str, Any]
) -> TensorDict:
    """One TensorDict of a batch's three parts: columns as stacks, `meta_info` as single values."""
    joined = batch.clone(recurse=False)
    for key, column in columns.items():
        joined.set(key, NonTensorStack(*[NonTensorData(row) for row in column.tolist()]))
    for key, value in meta_info.items():
        joined.set(key, NonTensorData(value, batch_size=joined.batch_size))
    return joined


def split_tensordict(
    joined: TensorDict,
) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray], dict[str, Any]]:
    """Inverse of :func:`join_tensordict`: ``(tensors, columns, meta_info)``."""
    tensors, columns, meta_info = {}, {}, {}
    for key in list(joined.keys()):
        # `get` tells a stack from a single value; indexing would unwrap both.
        value = joined.get(key)
        if isinstance(value, torch.Tensor):
            tensors[key] = value
        elif isinstance(value, NonTensorStack):
            columns[key] = np.empty(len(value), dtype=object)
            columns[key][:] = list(value.tolist())
        else:
            meta_info[key] = joined[key]
    return tensors, columns, meta_info
