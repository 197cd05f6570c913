"""The games of TextWorldExpress 1.1.0 and what can be set about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Range = tuple[int, int]
_DOORS_AND_BAG: Mapping[str, Range] = {"includeDoors": (0, 1), "limitInventorySize": (0, 1)}

# Per game the parameters of its generator, with the smallest and the largest value that it takes;
# its documentation names some values beyond that. Not every combination gives a game (a map of two
# places has none that are four apart).
GAMES: Mapping[str, Mapping[str, Range]] = MappingProxyType(
    {
        "arithmetic": {},
        "coin": {"numLocations": (1, 11), "numDistractorItems": (0, 10), **_DOORS_AND_BAG},
        "cookingworld": {
            "numLocations": (1, 11),
            "numIngredients": (1, 5),
            "numDistractorItems": (0, 10),
            **_DOORS_AND_BAG,
        },
        "mapreader": {
            "numLocations": (2, 48),
            "maxDistanceApart": (1, 8),
            "maxDistractorItemsPerLocation": (0, 3),
            **_DOORS_AND_BAG,
        },
        "peckingorder": {},
        "simonsays": {
            "gameLength": (1, 1000),
            "numDistractors": (0, 5),
            "memorization": (0, 1),
            "verbose": (0, 1),
        },
        "sorting": {},
        "twc": {"numLocations": (1, 3), "numItemsToPutAway": (1, 4), **_DOORS_AND_BAG},
    }
)


def parameter_string(game: str, values: Mapping[str, Any]) -> str:
    """`values` as the simulator takes them: "numLocations=5,includeDoors=0".

    Raises ValueError on an unknown game or parameter and on a value out of range.
    """
    if game not in GAMES:
        raise ValueError(f"unknown game '{game}'; available: {', '.join(GAMES)}")
    ranges = GAMES[game]
    for name, value in values.items():
        if name not in ranges:
            choices = ", ".join(ranges) or "none"
            raise ValueError(f"unknown parameter '{name}' of {game}; available: {choices}")
        low, high = ranges[name]
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name}={value!r} of {game}; it takes whole numbers {low} to {high}")
    return ",".join(f"{name}={int(value)}" for name, value in values.items())
