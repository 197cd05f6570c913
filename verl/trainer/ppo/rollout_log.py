"""Rollouts kept as JSON lines, one file a collection, one line a trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.utils.atomic import atomic_write_text
from verl.utils.json_lines import to_line
from verl.workers.interfaces import AgentWorld, Trajectory


class RolloutLog:
    """Writes `<folder>/<name>.jsonl`; with folder None nothing is written."""

    def __init__(self, folder: str | None, world: AgentWorld) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._world = world

    def write(self, name: str, trajectories: list[Trajectory]) -> list[dict[str, Any]]:
        """Returns the records it wrote."""
        records = [self._world.record(trajectory) for trajectory in trajectories]
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(map(to_line, records))
            atomic_write_text(self._folder / f"{name}.jsonl", lines)
        return records
