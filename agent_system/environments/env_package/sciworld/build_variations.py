"""Write variations.json from the installed simulator, so that listing tasks needs no Java.

python -m agent_system.environments.env_package.sciworld.build_variations
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from agent_system.environments.env_package.sciworld.options import SciWorldOptions
from agent_system.environments.env_package.sciworld.simulator import Simulator
from agent_system.environments.env_package.sciworld.tasks import VARIATIONS_FILE


def read_variations() -> dict[str, Any]:
    """Per task and split the variation ids as [first, last] ranges, from the real simulator."""
    simulator = Simulator(SciWorldOptions(simplification=""))
    try:
        tasks = {
            name: {split: as_ranges(ids) for split, ids in simulator.splits(name).items()}
            for name in simulator.task_names()
        }
    finally:
        simulator.close()
    return {"scienceworld": version("scienceworld"), "tasks": tasks}


def as_ranges(ids: list[int]) -> list[list[int]]:
    """Sorted ids as [first, last] pairs: [0, 1, 2, 5] -> [[0, 2], [5, 5]]."""
    ranges: list[list[int]] = []
    for number in ids:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def main() -> None:
    text = json.dumps(read_variations(), separators=(",", ":")).replace('},"', '},\n"')
    VARIATIONS_FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
