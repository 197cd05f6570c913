"""Measures rollouts: python benchmarks/rollout.py <subcommand> [options]; see docs/performance.md.

Every subcommand prints one Markdown table of numbers from this one run.
"""

from __future__ import annotations

from types import ModuleType

import subcommands
from rollout_parts import calibrate, context, lockstep, scale, step

SUBCOMMANDS: dict[str, ModuleType] = {
    "calibrate": calibrate,
    "lockstep": lockstep,
    "context": context,
    "scale": scale,
    "step": step,
}


if __name__ == "__main__":
    subcommands.run(__doc__, SUBCOMMANDS, "WARNING")
