"""DataProto: the batch that every part of the trainer passes on.

A batch is a table of rows. Its columns are tensors (a TensorDict) or numpy arrays (text, ids), its
`meta_info` says what holds for all rows. Row operations return new batches that share memory with
the old one where a view suffices; only the methods that say "in place" change their batch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader

from verl.protocol.codec import deserialize_tensordict, serialize_tensordict
from verl.protocol.merge import (
    list_of_dict_to_dict_of_list,
    merge_meta_info,
    union_numpy_dict,
    union_tensor_dict,
    union_two_dict,
)

logger = logging.getLogger(__name__)

Rows = list | np.ndarray | torch.Tensor  # positions, or a boolean mask


class DataProto:
    """Rows with tensor columns, numpy columns and shared metadata."""

    batch: TensorDict  # batch_size == [B]; without columns where the batch has no tensors
    non_tensor_batch: dict[str, np.ndarray]
    meta_info: dict[str, Any]

    def __init__(
        self,
        batch: TensorDict | None = None,
        non_tensor_batch: dict[str, np.ndarray] | None = None,
        meta_info: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            batch: TensorDict with ``batch_size == [B]``.
            non_tensor_batch: numpy arrays whose first dimension is B.
            meta_info: anything that is not per row; carried along by every row operation.

        Raises:
            AssertionError: see :meth:`check_consistency`.
        """
        self.non_tensor_batch = {} if non_tensor_batch is None else non_tensor_batch
        self.meta_info = {} if meta_info is None else meta_info
        if batch is None:
            rows = next(map(len, self.non_tensor_batch.values()), 0)
            batch = TensorDict({}, batch_size=[rows])
        self.batch = batch
        self.check_consistency()

    # --- building -------------------------------------------------------------------------------

    @classmethod
    def from_single_dict(
        cls, data: dict[str, torch.Tensor | np.ndarray], meta_info: dict[str, Any] | None = None
    ) -> DataProto:
        """Build a batch from columns of both kinds, told apart by their type.

        Raises:
            ValueError: a column is neither a tensor nor a numpy array.
        """
        tensors, arrays = {}, {}
        for key, column in data.items():
            if not isinstance(column, torch.Tensor | np.ndarray):
                raise ValueError(
                    f"column `{key}` is a {type(column).__name__}; pass a tensor or a numpy array"
                )
            (tensors if isinstance(column, torch.Tensor) else arrays)[key] = column
        return cls.from_dict(tensors, arrays, meta_info=meta_info)

    @classmethod
    def from_dict(
        cls,
        tensors: dict[str, torch.Tensor] | None = None,
        non_tensors: dict[str, Any] | None = None,
        meta_info: dict[str, Any] | None = None,
    ) -> DataProto:
        """Build a batch from columns; all share their first dimension, the rows.

        Lists in `non_tensors` become object arrays; numpy makes lists of equal length
        two-dimensional, so pass a one-dimensional object array to keep them whole.

        Raises:
            AssertionError: the columns differ in length.
        """
        batch = None
        if tensors:
            lengths = {key: tensor.shape[0] for key, tensor in tensors.items()}
            assert len(set(lengths.values())) == 1, f"columns differ in length: {lengths}"
            batch = TensorDict(tensors, batch_size=[next(iter(lengths.values()))])
        columns = {
            key: column if isinstance(column, np.ndarray) else np.array(column, dtype=object)
            for key, column in (non_tensors or {}).items()
        }
        return cls(batch, columns, dict(meta_info or {}))

    def check_consistency(self) -> None:
        """Assert that all columns have the same rows.

        Raises:
            AssertionError: naming the column that is not an array or has another length.
        """
        dims = len(self.batch.batch_size)
        assert dims == 1, f"a DataProto has one batch dimension, not {dims}"
        for key, column in self.non_tensor_batch.items():
            assert isinstance(column, np.ndarray), (
                f"column `{key}` of non_tensor_batch is a {type(column).__name__}, not an array"
            )
            assert len(column) == len(self), (
                f"column `{key}` has {len(column)} rows, the batch has {len(self)}"
            )

    # --- pickling -------------------------------------------------------------------------------

    def __getstate__(self) -> tuple:
        return serialize_tensordict(self.batch), self.non_tensor_batch, self.meta_info

    def __setstate__(self, state: tuple) -> None:
        batch, columns, self.meta_info = state
        self.batch = deserialize_tensordict(batch)
        # The object store hands out read-only memory, but batches are edited in place.
        self.non_tensor_batch = {
            key: column if column.flags.writeable else column.copy()
            for key, column in columns.items()
        }

    # --- rows -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.batch.batch_size[0]

    def __getitem__(self, item: slice | Rows) -> DataProto:
        """The rows of a slice (views, without a copy), of an index array or under a mask.

        Raises:
            TypeError: `item` is none of these.
        """
        if isinstance(item, slice):
            return self._with_rows(item, item)
        if isinstance(item, list | np.ndarray | torch.Tensor):
            return self.select_idxs(item)
        raise TypeError(f"rows are indexed by slice, list or array, not {type(item).__name__}")

    def _with_rows(self, tensor_rows: Any, array_rows: Any) -> DataProto:
        columns = {key: column[array_rows] for key, column in self.non_tensor_batch.items()}
        return type(self)(self.batch[tensor_rows], columns, dict(self.meta_info))

    def select_idxs(self, idxs: Rows) -> DataProto:
        """The rows at integer positions, in that order, or where a boolean mask is True."""
        index = idxs.cpu() if isinstance(idxs, torch.Tensor) else torch.from_numpy(np.asarray(idxs))
        if index.dtype != torch.bool:
            index = index.long()  # an empty list has no dtype of its own and would be float
        return self._with_rows(index, index.numpy())

    def reorder(self, indices: torch.Tensor) -> None:
        """Put the rows into the order of `indices`, in place."""
        ordered = self.select_idxs(indices)
        self.batch, self.non_tensor_batch = ordered.batch, ordered.non_tensor_batch

    def repeat(self, repeat_times: int = 2, interleave: bool = True) -> DataProto:
        """Every row `repeat_times` times: ``a a b b`` interleaved, else ``a b a b``."""
        rows = torch.arange(len(self))
        index = rows.repeat_interleave(repeat_times) if interleave else rows.repeat(repeat_times)
        return self.select_idxs(index)

    def split(self, split_size: int) -> list[DataProto]:
        """Consecutive parts of `split_size` rows; the last one may be shorter."""
        return [self[start : start + split_size] for start in range(0, len(self), split_size)]

    def chunk(self, chunks: int) -> list[DataProto]:
        """`chunks` consecutive parts of equal size.

        Raises:
            AssertionError: `chunks` does not divide the rows.
        """
        size, left = divmod(len(self), chunks)
        assert left == 0, (
            f"{len(self)} rows do not split into {chunks} equal chunks; "
            "pad with pad_dataproto_to_divisor"
        )
        return [self[part * size : (part + 1) * size] for part in range(chunks)]

    @staticmethod
    def concat(data: list[DataProto]) -> DataProto:
        """All rows of several batches that have the same columns.

        `meta_info` is merged: ``metrics`` become a dict of lists, other keys must agree.

        Raises:
            AssertionError: metadata or columns disagree.
        """
        columns = list_of_dict_to_dict_of_list([part.non_tensor_batch for part in data])
        return type(data[0])(
            TensorDict.cat([part.batch for part in data], dim=0),
            {key: np.concatenate(parts) for key, parts in columns.items()},
            merge_meta_info([part.meta_info for part in data]),
        )

    # --- columns --------------------------------------------------------------------------------

    def select(
        self,
        batch_keys: list[str] | None = None,
        non_tensor_batch_keys: list[str] | None = None,
        meta_info_keys: list[str] | None = None,
        deepcopy: bool = False,
    ) -> DataProto:
        """A batch with the named columns and metadata; None keeps all of a kind."""
        batch = self.batch if batch_keys is None else self.batch.select(*batch_keys)
        selected = type(self)(
            batch.clone(recurse=False),
            _chosen(self.non_tensor_batch, non_tensor_batch_keys),
            _chosen(self.meta_info, meta_info_keys),
        )
        return copy.deepcopy(selected) if deepcopy else selected

    def pop(
        self,
        batch_keys: list[str] | None = None,
        non_tensor_batch_keys: list[str] | None = None,
        meta_info_keys: list[str] | None = None,
    ) -> DataProto:
        """Move the named columns and metadata out of this batch, in place, into a new one."""
        tensors = {key: self.batch.pop(key) for key in batch_keys or []}
        columns = {key: self.non_tensor_batch.pop(key) for key in non_tensor_batch_keys or []}
        meta_info = {key: self.meta_info.pop(key) for key in meta_info_keys or []}
        return type(self).from_dict(tensors, columns, meta_info)

    def union(self, other: DataProto) -> DataProto:
        """Add the columns and metadata of `other`, in place; returns the batch itself.

        Raises:
            AssertionError: a shared key holds different values, or the rows differ in number.
        """
        self.batch = union_tensor_dict(self.batch, other.batch)
        self.non_tensor_batch = union_numpy_dict(self.non_tensor_batch, other.non_tensor_batch)
        self.meta_info = union_two_dict(self.meta_info, other.meta_info)
        self.check_consistency()
        return self

    # --- iterating ------------------------------------------------------------------------------

    def make_iterator(
        self,
        mini_batch_size: int,
        epochs: int,
        seed: int | None = None,
        dataloader_kwargs: dict[str, Any] | None = None,
    ) -> Iterator[DataProto]:
        """Go through all rows `epochs` times in mini-batches, each gathered at once.

        Args:
            mini_batch_size: rows of a mini-batch; must divide the number of rows.
            seed: seeds the order, if ``dataloader_kwargs={"shuffle": True}`` asks for one.
            dataloader_kwargs: passed to :class:`torch.utils.data.DataLoader`.

        Raises:
            AssertionError: `mini_batch_size` does not divide the number of rows.
        """
        assert len(self) % mini_batch_size == 0, (
            f"mini_batch_size={mini_batch_size} must divide the {len(self)} rows of the batch"
        )
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        positions: Any = range(len(self))  # a sequence is all the loader needs of a data set
        loader = DataLoader(
            positions,
            batch_size=mini_batch_size,
            collate_fn=self.select_idxs,
            generator=generator,
            **(dataloader_kwargs or {}),
        )
        return (mini_batch for _ in range(epochs) for mini_batch in loader)


def _chosen(entries: dict[str, Any], keys: list[str] | None) -> dict[str, Any]:
    return {key: entries[key] for key in entries if keys is None or key in keys}


def pad_dataproto_to_divisor(data: DataProto, size_divisor: int) -> tuple[DataProto, int]:
    """Repeat rows from the start until `size_divisor` divides the length.

    Returns:
        The padded batch (the same object if nothing was missing) and the number of rows added.
    """
    pad_size = -len(data) % size_divisor
    if len(data) == 0:
        logger.warning("an empty batch has no row to pad with; it stays empty")
    if pad_size == 0:
        return data, 0
    # Modulo, because a batch shorter than its padding is gone through more than once.
    return data.select_idxs(np.arange(len(data) + pad_size) % len(data)), pad_size


def unpad_dataproto(data: DataProto, pad_size: int) -> DataProto:
    """Drop the last `pad_size` rows: the inverse of :func:`pad_dataproto_to_divisor`."""
    return data[: len(data) - pad_size] if pad_size else data
