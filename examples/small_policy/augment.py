"""The environment's own renaming, applied to demonstrations.

A clone of 450 episodes learns their names by heart. With rooms, box colours and animals renamed at
random, anew in every epoch, only copying from the task text and the observations helps.
"""

from __future__ import annotations

import random

from agent_system.environments.env_package.sciworld.rename import Renaming

Messages = list[dict[str, str]]


def rename(messages: Messages, rng: random.Random) -> Messages:
    """One conversation with other names, the same ones in all its messages."""
    renaming = Renaming.draw(rng.getrandbits(32))
    return [
        {"role": message["role"], "content": renaming.apply(message["content"])}
        for message in messages
    ]
