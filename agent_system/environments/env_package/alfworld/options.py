"""The settings of ALFWorld, `env.options`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AlfWorldOptions:
    """Where the games are and how they are run.

    `data_dir`: the folder that holds `json_2.1.1`; "" is $ALFWORLD_DATA, or ~/.cache/alfworld.
    `speedups`: keep what the simulator would compute again at every step (see `speedups.py`);
    texts and commands are the same, a step takes a tenth of the time.
    """

    data_dir: str = ""
    speedups: bool = True
