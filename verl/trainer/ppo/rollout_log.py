"""Rollouts kept as JSON lines: an episode a line, with the step it belongs to, in few files.

<rollout_data_dir>/train_from_1.jsonl       train_from_5120.jsonl       val_from_0.jsonl
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl.utils.json_lines import JsonLinesFile, drop_records_after, iter_records
from verl.workers.interfaces import AgentWorld, Trajectory

KINDS = ("train", "val")
SEGMENT_BYTES = 256 << 20  # a file that has reached them is followed by another


def read_rollouts(folder: str | Path, kind: str) -> Iterator[dict[str, Any]]:
    """The episodes of `kind`, one of `KINDS`, in order of their `step`; those of `val` have a
    `part`: which tasks in which mode."""
    for path in _segments(Path(folder), kind).values():
        yield from iter_records(path)


class RolloutLog:
    """Appends to the newest file; with folder None nothing is written.

    What an earlier run left in the folder is kept aside (`*.previous`), but for `go_on_after`.
    """

    def __init__(
        self, folder: str | None, world: AgentWorld, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._world = world
        self._segment_bytes = segment_bytes
        self._files: dict[str, JsonLinesFile] | None = None  # by kind, once anything is written

    def go_on_after(self, step: int) -> None:
        """Forget what a resumed run is about to write again, and append to the rest."""
        self._files = {}
        if self._folder is None:
            return
        for kind in KINDS:
            for first, path in _segments(self._folder, kind).items():
                if first > step:
                    path.unlink()
                else:
                    self._files[kind] = JsonLinesFile(path)
            if kind in self._files:
                drop_records_after(self._files[kind].path, step)

    def write(
        self, kind: str, step: int, trajectories: list[Trajectory], **more: Any
    ) -> list[dict[str, Any]]:
        """Keep the episodes of a step, each with what `more` says. Returns their records."""
        records = [self._world.record(trajectory) for trajectory in trajectories]
        if self._folder is not None:
            file = self._file(self._folder, kind, step)
            for record in records:
                file.append({"step": step, **more, **record})
        return records

    def _file(self, folder: Path, kind: str, step: int) -> JsonLinesFile:
        if self._files is None:
            self._files = {}
            _set_aside(folder)
        file = self._files.get(kind)
        if file is not None and not file.missing and file.size >= self._segment_bytes:
            file.close()
            file = None
        if file is None:
            file = self._files[kind] = JsonLinesFile(folder / f"{kind}_from_{step}.jsonl")
        return file


def _segments(folder: Path, kind: str) -> dict[int, Path]:
    """First step -> file, oldest first."""
    name = re.compile(rf"{kind}_from_(\d+)\.jsonl")
    matches = ((name.fullmatch(path.name), path) for path in folder.glob(f"{kind}_from_*.jsonl"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def _set_aside(folder: Path) -> None:
    for kind in KINDS:
        for path in _segments(folder, kind).values():
            os.replace(path, path.with_name(f"{path.name}.previous"))
