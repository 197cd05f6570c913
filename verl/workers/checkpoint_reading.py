"""Reads the sharded checkpoints that torch writes, and runs nothing of what they hold.

torch unpickles `.metadata` and every entry that is no tensor, which runs whatever a pickle names.
Here the first may name the types of its table only, and the others are read as weights are.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.serialization import _get_layout

from verl.utils.plain_values import load_plain


def read_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Fill `state`, of a model and its optimiser, from the folder `path`; called on all ranks.

    Raises:
        Exception: of any type: what is missing, or whatever a damaged file makes torch raise.
    """
    reader = _PlainReader(path)
    _drop_unsaved(state["optimizer"]["state"], reader.read_metadata())
    try:
        load(state, storage_reader=reader, planner=_PlainPlanner())
    except CheckpointException as error:  # no Exception; it has what each rank met
        raise next(iter(error.failures.values()))[0] from None


def _drop_unsaved(optimizer_state: dict[str, dict[str, Any]], table: Metadata) -> None:
    """A parameter that never had a gradient has no optimiser state in the checkpoint."""
    for name in list(optimizer_state):
        keys = (f"optimizer.state.{name}.{key}" for key in optimizer_state[name])
        if all(key not in table.state_dict_metadata for key in keys):
            del optimizer_state[name]


class _PlainReader(FileSystemReader):
    """Its table of what lies where is data alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        file = Path(self.path) / ".metadata"
        table = _TableUnpickler(io.BytesIO(file.read_bytes())).load()
        for entry in table.storage_data.values():
            if Path(entry.relative_path).name != entry.relative_path:
                raise pickle.UnpicklingError(f"it leads out of the checkpoint: {entry}")
        table.storage_meta = dcp.StorageMeta(load_id=self.load_id)
        return table


class _PlainPlanner(DefaultLoadPlanner):
    """Builds plain values from what is no tensor, and no other object."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[name], load_plain(value, name))


class _TableUnpickler(pickle.Unpickler):
    """Knows the types of torch's table of a checkpoint by name, and no others."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in _TYPES:
            raise pickle.UnpicklingError(f".metadata names {name}, which is no part of a table")
        return _TYPES[name]


def _path(*parts: str) -> str:
    """Where a checkpoint was written; nothing reads it."""
    return "/".join(parts)


_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_TYPES = (
    {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in (
            dcp.Metadata,
            dcp.MetadataIndex,
            dcp.TensorStorageMetadata,
            dcp.BytesStorageMetadata,
            dcp.ChunkStorageMetadata,
            dcp.TensorProperties,
            dcp.StorageMeta,
            dcp._MEM_FORMAT_ENCODING,
            _StorageInfo,
            _get_layout,
            torch.Size,
        )
    }
    | dict.fromkeys(("pathlib.PosixPath", "pathlib._local.PosixPath"), _path)
    | _DTYPES
)
