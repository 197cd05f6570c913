"""DataProto: the batch that every part of the trainer passes on.

A batch is a table of rows. Its columns are tensors (a TensorDict) or numpy arrays (text, ids), its
`meta_info` says what holds for all rows. Row operations return new batches that share memory with
the old one where a view suffices; only the methods that say "in place" change their batch.
"""

from __future__ import annotations

import copy
import logging
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader

from verl.protocol.codec import (
    deserialize_single_tensor,
    deserialize_tensordict,
    join_tensordict,
    serialize_single_tensor,
    serialize_tensordict,
    split_tensordict,
)
from verl.protocol.merge import (
    list_of_dict_to_dict_of_list,
    merge_meta_info,
    union_numpy_dict,
    union_tensor_dict,
    union_two_dict,
)
from verl.utils import batch_shape
from verl.utils.batch_future import DataProtoFuture
from verl.utils.batch_padding import DataProtoConfig, pad_dataproto_to_divisor, unpad_dataproto
from verl.utils.batch_shape import fold_batch_dim, unfold_batch_dim

__all__ = [
    "DataProto",
    "DataProtoConfig",
    "DataProtoFuture",
    "DataProtoItem",
    "collate_fn",
    "deserialize_single_tensor",
    "deserialize_tensordict",
    "fold_batch_dim",
    "list_of_dict_to_dict_of_list",
    "pad_dataproto_to_divisor",
    "serialize_single_tensor",
    "serialize_tensordict",
    "unfold_batch_dim",
    "union_numpy_dict",
    "union_tensor_dict",
    "unpad_dataproto",
]

logger = logging.getLogger(__name__)


@dataclass
class DataProtoItem:
    """One row of a :class:`DataProto`."""

    batch: TensorDict | None = None
    non_tensor_batch: dict[str, Any] = field(default_factory=dict)
    meta_info: dict[str, Any] = field(default_factory=dict)


def collate_fn(items: list[DataProtoItem]) -> DataProto:
    """Rows back into a batch: ``collate_fn([data[i] for i in range(len(data))])``."""
    columns = list_of_dict_to_dict_of_list([item.non_tensor_batch for item in items])
    return DataProto(
        batch=torch.stack([item.batch for item in items]).contiguous(),
        non_tensor_batch={key: np.array(rows, dtype=object) for key, rows in columns.items()},
    )


@dataclass
class DataProto:
    """Rows with tensor columns, numpy columns and shared metadata.

    Args:
        batch: TensorDict with ``batch_size == [B]``, or None.
        non_tensor_batch: numpy arrays whose first dimension is B.
        meta_info: anything that is not per row; carried along by every row operation.
    """

    batch: TensorDict | None = None
    non_tensor_batch: dict[str, np.ndarray] = field(default_factory=dict)
    meta_info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check_consistency()

    # --- building -------------------------------------------------------------------------------

    @classmethod
    def from_single_dict(
        cls,
        data: dict[str, torch.Tensor | np.ndarray],
        meta_info: dict[str, Any] | None = None,
        auto_padding: bool = False,
    ) -> DataProto:
        """Build a batch from columns of both kinds, told apart by their type.

        Raises:
            ValueError: a column is neither a tensor nor a numpy array.
        """
        for key, column in data.items():
            if not isinstance(column, torch.Tensor | np.ndarray):
                raise ValueError(
                    f"column `{key}` is a {type(column).__name__}; pass a tensor or a numpy array"
                )
        tensors = {key: col for key, col in data.items() if isinstance(col, torch.Tensor)}
        arrays = {key: col for key, col in data.items() if key not in tensors}
        return cls.from_dict(tensors, arrays, meta_info=meta_info, auto_padding=auto_padding)

    @classmethod
    def from_dict(
        cls,
        tensors: dict[str, torch.Tensor] | None = None,
        non_tensors: dict[str, Any] | None = None,
        meta_info: dict[str, Any] | None = None,
        num_batch_dims: int = 1,
        auto_padding: bool = False,
    ) -> DataProto:
        """Build a batch from columns; all share their first dimension, the rows.

        Lists in `non_tensors` become object arrays; numpy makes lists of equal length
        two-dimensional, so pass a one-dimensional object array to keep them whole.

        Raises:
            AssertionError: the columns differ in length, or `num_batch_dims` is not 1.
        """
        assert num_batch_dims == 1, f"a DataProto has one batch dimension, not {num_batch_dims}"
        meta_info = dict(meta_info or {})
        if auto_padding:
            meta_info[DataProtoConfig.auto_padding_key] = True

        batch = None
        if tensors:
            lengths = {key: tensor.shape[0] for key, tensor in tensors.items()}
            assert len(set(lengths.values())) == 1, f"columns differ in length: {lengths}"
            batch = TensorDict(tensors, batch_size=[next(iter(lengths.values()))])
        columns = {
            key: column if isinstance(column, np.ndarray) else np.array(column, dtype=object)
            for key, column in (non_tensors or {}).items()
        }
        return cls(batch=batch, non_tensor_batch=columns, meta_info=meta_info)

    @classmethod
    def from_tensordict(cls, tensor_dict: TensorDict) -> DataProto:
        """Inverse of :meth:`to_tensordict`: stacks become columns, single values `meta_info`."""
        return cls.from_dict(*split_tensordict(tensor_dict))

    def to_tensordict(self) -> TensorDict:
        """All three parts in one TensorDict; columns as stacks, `meta_info` as single values."""
        batch = TensorDict({}, batch_size=[len(self)]) if self.batch is None else self.batch
        return join_tensordict(batch, self.non_tensor_batch, self.meta_info)

    def check_consistency(self) -> None:
        """Assert that all columns have the same rows.

        Raises:
            AssertionError: naming the column that is not an array or has another length.
        """
        if self.batch is not None:
            dims = len(self.batch.batch_size)
            assert dims == 1, f"a DataProto has one batch dimension, not {dims}"
        for key, column in (self.non_tensor_batch or {}).items():
            assert isinstance(column, np.ndarray), (
                f"column `{key}` of non_tensor_batch is a {type(column).__name__}, not an array"
            )
            assert len(column) == len(self), (
                f"column `{key}` has {len(column)} rows, the batch has {len(self)}"
            )

    # --- pickling -------------------------------------------------------------------------------

    def __getstate__(self) -> tuple:
        batch = None if self.batch is None else serialize_tensordict(self.batch)
        return batch, self.non_tensor_batch, self.meta_info

    def __setstate__(self, state: tuple) -> None:
        batch, columns, self.meta_info = state
        self.batch = None if batch is None else deserialize_tensordict(batch)
        # The object store hands out read-only memory, but batches are edited in place.
        self.non_tensor_batch = columns and {
            key: column if column.flags.writeable else column.copy()
            for key, column in columns.items()
        }

    def save_to_disk(self, filepath: str | os.PathLike) -> None:
        """Pickle the batch to a file; read it back with :meth:`load_from_disk`."""
        with open(filepath, "wb") as file:
            pickle.dump(self, file, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def load_from_disk(filepath: str | os.PathLike) -> DataProto:
        """Read a batch that :meth:`save_to_disk` wrote. Pickle runs code: open own files only."""
        with open(filepath, "rb") as file:
            return pickle.load(file)

    # --- looking --------------------------------------------------------------------------------

    def __len__(self) -> int:
        if self.batch is not None:
            return self.batch.batch_size[0]
        return len(next(iter(self.non_tensor_batch.values()))) if self.non_tensor_batch else 0

    def __getitem__(self, item: Any) -> DataProto | DataProtoItem:
        """An int gives one row, a slice or an index array (ints or bools) gives a batch.

        Raises:
            TypeError: `item` is none of these.
        """
        if isinstance(item, slice):
            return self.slice(item.start, item.stop, item.step)
        if isinstance(item, list | np.ndarray | torch.Tensor):
            return self.select_idxs(item)
        if isinstance(item, int | np.integer):
            return DataProtoItem(
                batch=None if self.batch is None else self.batch[int(item)],
                non_tensor_batch={key: col[item] for key, col in self.non_tensor_batch.items()},
                meta_info=self.meta_info,
            )
        raise TypeError(f"rows are indexed by int, slice, list or array, not {type(item).__name__}")

    def print_size(self, prefix: str = "") -> None:
        """Log the memory of the columns in GiB; object arrays count their pointers only."""
        tensors = [] if self.batch is None else list(self.batch.values())
        logger.info(
            "%sTensorDict: %.3f GiB, non_tensor_batch: %.3f GiB",
            f"{prefix}, " if prefix else "",
            sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**30,
            sum(column.nbytes for column in self.non_tensor_batch.values()) / 2**30,
        )

    # --- rows -----------------------------------------------------------------------------------

    def _with_rows(self, batch: TensorDict | None, columns: dict[str, np.ndarray]) -> DataProto:
        return type(self)(batch=batch, non_tensor_batch=columns, meta_info=dict(self.meta_info))

    def slice(
        self, start: int | None = None, end: int | None = None, step: int | None = None
    ) -> DataProto:
        """Rows ``start:end:step`` as views, without a copy."""
        rows = slice(start, end, step)
        batch = None if self.batch is None else self.batch[rows]
        return self._with_rows(
            batch, {key: col[rows] for key, col in self.non_tensor_batch.items()}
        )

    def select_idxs(self, idxs: list | np.ndarray | torch.Tensor) -> DataProto:
        """The rows at integer positions, in that order, or where a boolean mask is True."""
        index = batch_shape.row_indices(idxs)
        batch = None if self.batch is None else self.batch[index]
        array_index = index.numpy()
        return self._with_rows(
            batch, {key: col[array_index] for key, col in self.non_tensor_batch.items()}
        )

    def reorder(self, indices: torch.Tensor) -> None:
        """Put the rows into the order of `indices`, in place."""
        ordered = self.select_idxs(indices)
        self.batch, self.non_tensor_batch = ordered.batch, ordered.non_tensor_batch

    def repeat(self, repeat_times: int = 2, interleave: bool = True) -> DataProto:
        """Every row `repeat_times` times: ``a a b b`` interleaved, else ``a b a b``."""
        rows = torch.arange(len(self))
        index = rows.repeat_interleave(repeat_times) if interleave else rows.repeat(repeat_times)
        return self.select_idxs(index)

    def sample_level_repeat(self, repeat_times: list[int] | torch.Tensor) -> DataProto:
        """Row i ``repeat_times[i]`` times, copies side by side."""
        times = torch.as_tensor(repeat_times)
        assert times.shape == (len(self),), (
            f"repeat_times has shape {tuple(times.shape)}; one number for each of {len(self)} rows"
        )
        return self.select_idxs(torch.arange(len(self)).repeat_interleave(times))

    def unfold_column_chunks(self, n_split: int, split_keys: list[str] | None = None) -> DataProto:
        """See :func:`verl.utils.batch_shape.unfold_column_chunks`."""
        return batch_shape.unfold_column_chunks(self, n_split, split_keys)

    def split(self, split_size: int) -> list[DataProto]:
        """Consecutive parts of `split_size` rows; the last one may be shorter."""
        return [self[start : start + split_size] for start in range(0, len(self), split_size)]

    def chunk(self, chunks: int) -> list[DataProto]:
        """`chunks` consecutive parts of equal size.

        With padding enabled the first parts may be one row longer than the last.

        Raises:
            AssertionError: `chunks` does not divide the rows and padding is off.
        """
        size, longer = divmod(len(self), chunks)
        assert longer == 0 or self.is_padding_enabled(), (
            f"{len(self)} rows do not split into {chunks} equal chunks; "
            "pad with pad_dataproto_to_divisor or build the batch with auto_padding=True"
        )
        ends = np.cumsum([size + 1] * longer + [size] * (chunks - longer)).tolist()
        return [self[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @staticmethod
    def concat(data: list[DataProto]) -> DataProto:
        """All rows of several batches that have the same columns.

        `meta_info` is merged: ``metrics`` become a dict of lists, other keys must agree.

        Raises:
            AssertionError: metadata or columns disagree.
        """
        first = data[0]
        batch = None if first.batch is None else torch.cat([part.batch for part in data], dim=0)
        columns = list_of_dict_to_dict_of_list([part.non_tensor_batch for part in data])
        return type(first)(
            batch=batch,
            non_tensor_batch={key: np.concatenate(parts) for key, parts in columns.items()},
            meta_info=merge_meta_info([part.meta_info for part in data]),
        )

    # --- padding --------------------------------------------------------------------------------

    def is_padding_enabled(self) -> bool:
        """Whether this batch, or the whole process, asked for automatic padding."""
        by_batch = self.meta_info.get(DataProtoConfig.auto_padding_key, False)
        return by_batch or DataProtoConfig.auto_padding

    def padding(self, padding_size: int, padding_candidate: str = "last") -> None:
        """Append `padding_size` copies of the ``"first"`` or the ``"last"`` row, in place."""
        if padding_size == 0:
            return
        row = 0 if padding_candidate == "first" else len(self) - 1
        self.reorder(torch.tensor([*range(len(self)), *[row] * padding_size]))

    # --- columns --------------------------------------------------------------------------------

    def select(
        self,
        batch_keys: list[str] | None = None,
        non_tensor_batch_keys: list[str] | None = None,
        meta_info_keys: list[str] | None = None,
        deepcopy: bool = False,
    ) -> DataProto:
        """A batch with the named columns and metadata; None keeps all of a kind."""
        batch = self.batch
        if batch is not None and batch_keys is not None:
            batch = batch.select(*batch_keys)
        columns, meta_info = self.non_tensor_batch, self.meta_info
        if non_tensor_batch_keys is not None:
            columns = {key: columns[key] for key in columns if key in set(non_tensor_batch_keys)}
        if meta_info_keys is not None:
            meta_info = {key: meta_info[key] for key in meta_info if key in set(meta_info_keys)}
        if deepcopy:
            batch = None if batch is None else batch.clone()
            columns, meta_info = copy.deepcopy(columns), copy.deepcopy(meta_info)
        return type(self)(batch=batch, non_tensor_batch=dict(columns), meta_info=dict(meta_info))

    def pop(
        self,
        batch_keys: list[str] | None = None,
        non_tensor_batch_keys: list[str] | None = None,
        meta_info_keys: list[str] | None = None,
    ) -> DataProto:
        """Move the named columns and metadata into a new batch, in place.

        Raises:
            KeyError: a name is not there.
        """
        tensors = {key: self.batch.pop(key) for key in batch_keys or []}
        columns = {key: self.non_tensor_batch.pop(key) for key in non_tensor_batch_keys or []}
        meta_info = {key: self.meta_info.pop(key) for key in meta_info_keys or []}
        return type(self).from_dict(tensors, columns, meta_info)

    def rename(
        self, old_keys: str | list[str] | None = None, new_keys: str | list[str] | None = None
    ) -> DataProto:
        """Rename tensor columns, in place; returns the batch itself.

        Raises:
            ValueError: the two lists differ in length.
        """
        old_names = [old_keys] if isinstance(old_keys, str) else list(old_keys or [])
        new_names = [new_keys] if isinstance(new_keys, str) else list(new_keys or [])
        if len(old_names) != len(new_names):
            raise ValueError(f"cannot rename {old_names} to {new_names}: the counts differ")
        for old, new in zip(old_names, new_names, strict=True):
            self.batch.rename_key_(old, new)
        return self

    def union(self, other: DataProto) -> DataProto:
        """Add the columns and metadata of `other`, in place; returns the batch itself.

        Raises:
            AssertionError: a shared key holds different values, or the rows differ in number.
        """
        if self.batch is None or other.batch is None:
            self.batch = other.batch if self.batch is None else self.batch
        else:
            self.batch = union_tensor_dict(self.batch, other.batch)
        self.non_tensor_batch = union_numpy_dict(self.non_tensor_batch, other.non_tensor_batch)
        self.meta_info = union_two_dict(self.meta_info, other.meta_info)
        self.check_consistency()
        return self

    # --- moving and iterating -------------------------------------------------------------------

    def to(self, device: str | torch.device) -> DataProto:
        """Move the tensors to `device`, in place; returns the batch itself."""
        if self.batch is not None:
            self.batch = self.batch.to(device)
        return self

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
        loader = DataLoader(
            range(len(self)),
            batch_size=mini_batch_size,
            collate_fn=self.select_idxs,
            generator=generator,
            **(dataloader_kwargs or {}),
        )
        return (mini_batch for _ in range(epochs) for mini_batch in loader)
