"""Folding of a :class:`verl.protocol.DataProto`: the same rows in another shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from verl.protocol.batch import DataProto


def fold_batch_dim(data: DataProto, new_batch_size: int) -> DataProto:
    """``(B, ...) -> (new_batch_size, B // new_batch_size, ...)`` for every column.

    Raises:
        AssertionError: `new_batch_size` does not divide the number of rows.
    """
    rows = len(data)
    assert rows % new_batch_size == 0, f"{rows} rows do not fold into {new_batch_size} groups"
    batch = data.batch.view(new_batch_size, -1)
    batch.auto_batch_size_(batch_dims=1)
    columns = {
        key: column.reshape(new_batch_size, -1, *column.shape[1:])
        for key, column in data.non_tensor_batch.items()
    }
    return type(data)(batch=batch, non_tensor_batch=columns, meta_info=data.meta_info)


def unfold_batch_dim(data: DataProto, batch_dims: int = 2) -> DataProto:
    """Merge the first `batch_dims` dimensions of every column: the inverse of the fold."""
    shared = data.batch.clone(recurse=False)
    shared.auto_batch_size_(batch_dims=batch_dims)
    batch = shared.view(-1)
    columns = {
        key: column.reshape(batch.batch_size[0], *column.shape[batch_dims:])
        for key, column in data.non_tensor_batch.items()
    }
    return type(data)(batch=batch, non_tensor_batch=columns, meta_info=data.meta_info)


def unfold_column_chunks(
    data: DataProto, n_split: int, split_keys: list[str] | None = None
) -> DataProto:
    """Turn every row into `n_split` rows.

    The columns in `split_keys` are cut along their second dimension, ``(B, n_split * k, ...) ->
    (B * n_split, k, ...)``; all others are repeated.

    Raises:
        AssertionError: `n_split` does not divide a column that is to be cut.
    """
    unfolded = data.repeat(n_split, interleave=True)
    for key in split_keys or []:
        columns = data.non_tensor_batch if key in data.non_tensor_batch else data.batch
        target = unfolded.non_tensor_batch if key in data.non_tensor_batch else unfolded.batch
        rows, width, *rest = columns[key].shape
        assert width % n_split == 0, f"`{key}` is {width} wide and cannot be cut in {n_split}"
        target[key] = columns[key].reshape(rows * n_split, width // n_split, *rest)
    return unfolded


def row_indices(indices: list | np.ndarray | torch.Tensor) -> torch.Tensor:
    """Integer or boolean row indices of any kind as a CPU tensor."""
    if isinstance(indices, torch.Tensor):
        index = indices.cpu()
    else:
        index = torch.from_numpy(np.asarray(indices))
    # An empty list has no dtype of its own and would arrive as float.
    return index if index.dtype == torch.bool else index.long()
