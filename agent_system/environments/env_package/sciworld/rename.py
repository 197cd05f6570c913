"""Names swapped at random, episode by episode, so that a policy reads them instead of recalling.

RL on a few hundred variations learns their animals' names by heart. Here the colours of boxes, the
names of rooms and the names of animals change places with others of their kind, in the task text
and in all observations alike, and back in the commands. Only for the find-* tasks: where the answer
is knowledge about an animal (lifespan-*), a swapped name would be a wrong fact.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

BOX_COLOURS = ("blue box", "green box", "orange box", "purple box", "red box", "yellow box")
# "outside" stays: it is also an ordinary word of the simulator's texts.
ROOMS = (
    "art studio",
    "bathroom",
    "bedroom",
    "foundry",
    "greenhouse",
    "hallway",
    "kitchen",
    "living room",
    "workshop",
)
ANIMALS = (
    "ant",
    "beaver",
    "bee",
    "blue jay",
    "brown bear",
    "butterfly",
    "chameleon",
    "chipmunk",
    "crocodile",
    "dove",
    "dragonfly",
    "elephant",
    "frog",
    "giant tortoise",
    "hedgehog",
    "moth",
    "mouse",
    "parrot",
    "rabbit",
    "toad",
    "turtle",
    "wolf",
)
ANIMAL_SWAP_PROBABILITY = 0.8


class Renaming:
    """A one-to-one map of names onto names of the same kind."""

    def __init__(self, new_names: Mapping[str, str]) -> None:
        """Raises ValueError when `new_names` is not a permutation of its keys."""
        if set(new_names) != set(new_names.values()):
            raise ValueError(f"a renaming has to be a permutation of names; got {dict(new_names)}")
        self._forward = MappingProxyType(dict(new_names))
        self._backward = MappingProxyType({new: old for old, new in new_names.items()})
        # longest first, so that "living room" is found before a shorter name inside it
        names = sorted(new_names, key=len, reverse=True)
        self._pattern = re.compile(rf"\b(?:{'|'.join(names)})\b", re.IGNORECASE) if names else None

    @classmethod
    def none(cls) -> Renaming:
        """Every name stays."""
        return cls({})

    @classmethod
    def draw(cls, seed: int) -> Renaming:
        """The renaming of an episode: equal seeds give equal names."""
        rng = random.Random(seed)
        moved_animals = [name for name in ANIMALS if rng.random() < ANIMAL_SWAP_PROBABILITY]
        return cls(
            _permuted(BOX_COLOURS, rng) | _permuted(ROOMS, rng) | _permuted(moved_animals, rng)
        )

    def apply(self, text: str) -> str:
        """The simulator's words as the agent sees them."""
        return self._replace(text, self._forward)

    def invert(self, command: str) -> str:
        """The agent's words as the simulator knows them."""
        return self._replace(command, self._backward)

    def _replace(self, text: str, names: Mapping[str, str]) -> str:
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: names[match[0].lower()], text)


def _permuted(names: Sequence[str], rng: random.Random) -> dict[str, str]:
    return dict(zip(names, rng.sample(names, len(names)), strict=True))
