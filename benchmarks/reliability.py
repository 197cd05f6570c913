"""Measures what failures do: python benchmarks/reliability.py <subcommand> [options]; see
docs/reliability.md.

Every subcommand prints one Markdown table of numbers from this one run.
"""

from __future__ import annotations

from types import ModuleType

import subcommands
from reliability_parts import configurations, damage, endurance, kills, observations

SUBCOMMANDS: dict[str, ModuleType] = {
    "configurations": configurations,
    "damage": damage,
    "endurance": endurance,
    "kills": kills,
    "observations": observations,
}


if __name__ == "__main__":
    subcommands.run(__doc__, SUBCOMMANDS, "ERROR")
