"""Checkpoints that would run code, with a manifest that fits, as whoever makes them would write."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import torch

from verl.trainer.checkpoint import DRIVER_FILE
from verl.utils.manifest import MANIFEST, write_manifest

TRACE = "executed"  # the folder that the code makes, beside the checkpoints


class Evil:
    """Whoever unpickles it makes a folder."""

    def __init__(self, checkpoint: Path) -> None:
        self.trace = str(checkpoint.parent / TRACE)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


def evil_table(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """In place of torch's table of tensors, or within it."""
    table, file = Evil(checkpoint), checkpoint / "actor" / ".metadata"
    if rng.random() < 0.5:
        table = pickle.loads(file.read_bytes())
        table.planner_data = {"more": Evil(checkpoint)}
    file.write_bytes(pickle.dumps(table))
    fit(checkpoint)


def evil_entry(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """In place of an entry that is no tensor."""
    file, shard = checkpoint / "actor" / ".metadata", checkpoint / "actor" / "__0_0.distcp"
    table = pickle.loads(file.read_bytes())
    names = [name for name, kind in table.state_dict_metadata.items() if not hasattr(kind, "size")]
    name = rng.choice(names)
    (info,) = (info for index, info in table.storage_data.items() if index.fqn == name)
    info.offset = shard.stat().st_size
    with shard.open("ab") as appended:
        torch.save(Evil(checkpoint), appended)
    info.length = shard.stat().st_size - info.offset
    file.write_bytes(pickle.dumps(table))
    fit(checkpoint)


def evil_driver(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """Within the driver's state."""
    state = {"step": 3, "tracker": {}, "more": Evil(checkpoint)}
    torch.save(state, checkpoint / DRIVER_FILE, _use_new_zipfile_serialization=rng.random() < 0.5)
    fit(checkpoint)


def evil_random_state(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """Within a rank's random state."""
    state = {"cpu": torch.get_rng_state(), "more": Evil(checkpoint)}
    torch.save(state, checkpoint / "actor" / "random_state_rank_0.pt")
    fit(checkpoint)


def fit(checkpoint: Path) -> None:
    """Make the manifest fit the files."""
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, step=int(checkpoint.name.rpartition("_")[2]))
